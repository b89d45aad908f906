"""Offline corpus tools: text to shuffled token files that training reads, without torch and without a GPU.

Importing the package loads nothing heavy; every module imports what it needs.
"""

# Of which distribution this package is: the name is general enough for another one to have it (docs/design/013).
DISTRIBUTION = "qwen-megatron"


def __getattr__(name: str) -> str:
    """`__version__`, looked up only when it is asked for: reading package metadata takes time."""
    if name == "__version__":
        from data_tools.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
