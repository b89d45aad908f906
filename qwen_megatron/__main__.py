"""`python -m qwen_megatron`, the form torchrun starts."""

import sys

from qwen_megatron.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
