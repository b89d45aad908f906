"""Queries that a policy answers while it is trained."""
