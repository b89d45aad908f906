"""Dialogues packed into rows, for supervised fine-tuning."""
