"""Offline corpus tools: text to shuffled token files that training reads, without torch and without a GPU.

Importing the package loads nothing heavy; every module imports what it needs.
"""

# Of which distribution this package is: the name is general enough for another one to have it (docs/design/013).
DISTRIBUTION = "qwen-megatron"
