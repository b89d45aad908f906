"""Checkpoint files: state, saving, loading, manifest, retention."""
