"""What ranks, agents and jobs need, imported once in the process that all of them are forked from.

Whatever is missing here is imported again by each rank that needs it.
"""

from __future__ import annotations

import gc

from qwen_megatron.jobs.launcher import let_waiting_threads_sleep
from qwen_megatron.libraries import first_imports

# As every command does before torch is imported: threads of a job of one rank would spin on cores that others need.
let_waiting_threads_sleep()
with first_imports():
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch.distributed.run  # noqa: F401

    import data_tools.engine.preload  # noqa: F401
    import qwen_megatron.jobs.kinds.table
    import qwen_megatron.jobs.pretrain  # noqa: F401
    import tests.support.launch  # noqa: F401
    from qwen_megatron.checkpoint.environment import environment
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve

# The first configuration of a process imports pydantic and makes validators: a fifth of a rank's first small job.
resolve(load_config(None, ["model.preset=tiny", "parallel.platform=cpu"]))
# Versions of packages, and of the source by a command.
environment()

gc.freeze()
