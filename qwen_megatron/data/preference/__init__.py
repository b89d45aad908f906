"""Pairs of a preferred and a rejected dialogue, for reward models."""
