"""The version of the package, as installed."""

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Version of the distribution qwen-megatron; "unknown" if the source tree is used without installing it."""
    try:
        return metadata.version("qwen-megatron")
    except metadata.PackageNotFoundError:
        return "unknown"
