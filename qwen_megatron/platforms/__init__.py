"""Kinds of machine: choose one with `get_platform`."""

from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.select import get_platform

__all__ = ["Platform", "get_platform"]
