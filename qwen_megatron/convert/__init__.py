"""Conversion of checkpoints to Hugging Face folders and back."""
