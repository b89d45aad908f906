"""What ranks, agents and jobs need, imported once in the process that all of them are forked from.

Whatever is missing here is imported again by each rank that needs it.
"""

from __future__ import annotations

import gc

# Looking through what is imported for garbage takes a third of the time of importing it.
gc.disable()

import hypothesis  # noqa: E402, F401
import pytest  # noqa: E402, F401
import torch.distributed.run  # noqa: E402, F401

import qwen_megatron.jobs.pretrain  # noqa: E402, F401
import tests.support.launch  # noqa: E402, F401

gc.freeze()
gc.enable()
