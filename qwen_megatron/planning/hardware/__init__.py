"""Hardware files: what a kind of GPU can do, each number with its source."""
