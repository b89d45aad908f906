"""The only place that changes a loaded library."""
