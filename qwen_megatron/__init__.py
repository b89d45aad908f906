"""Pretraining of Qwen models with tensor, pipeline, context and data parallelism on Megatron-Core."""

import data_tools

if getattr(data_tools, "DISTRIBUTION", None) != "qwen-megatron":
    raise ImportError(
        f"data_tools is imported from {getattr(data_tools, '__file__', None) or list(data_tools.__path__)}, which is "
        "not qwen-megatron's: another distribution or folder has a package of that name and comes first in sys.path. "
        "Install qwen-megatron into an environment of its own, or start Python in another folder"
    )


def __getattr__(name: str) -> str:
    """`__version__`, looked up only when it is asked for: reading package metadata takes time."""
    if name == "__version__":
        from data_tools.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
