"""Pretraining of Qwen models with tensor, pipeline, context and data parallelism on Megatron-Core."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up only when it is asked for: reading package metadata takes time."""
    if name == "__version__":
        from data_tools.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
