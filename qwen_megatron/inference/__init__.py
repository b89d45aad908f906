"""A model in one process: logits and greedy generation."""
