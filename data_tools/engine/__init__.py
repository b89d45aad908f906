"""Tasks: what they are, where they run, what they leave behind."""
