"""What is called after every step."""
