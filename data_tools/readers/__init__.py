"""Readers: the records of one file, or of a range of it, with every bad record named."""
