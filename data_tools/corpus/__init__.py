"""Megatron's .bin and .idx with a sidecar and checksums: read, written, joined, verified."""
