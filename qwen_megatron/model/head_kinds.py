"""Kinds of heads, as a checkpoint names them; apart from the heads, so that a checkpoint is read without torch."""

from __future__ import annotations

LANGUAGE_MODEL = "language_model"
SCALAR = "scalar"
# Name of its weight in checkpoints.
SCALAR_HEAD = "scalar_head.weight"
HEADS = (LANGUAGE_MODEL, SCALAR)
