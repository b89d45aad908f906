"""Text that can be had without a download."""
