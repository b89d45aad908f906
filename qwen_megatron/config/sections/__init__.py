"""Sections of a configuration, one a file."""
