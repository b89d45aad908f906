"""Imports what operations need; a fork server does so once for all workers that are forked from it."""

import gc
import importlib

from data_tools.allocator import KEPT_BYTES, keep_freed_blocks
from data_tools.engine.operations import OPERATIONS

keep_freed_blocks(KEPT_BYTES)
_is_enabled = gc.isenabled()
# What is imported stays: it need not be looked through for garbage, neither here nor in a worker, which would copy it.
gc.disable()
for _module in sorted({module for module, _ in OPERATIONS.values()}):
    importlib.import_module(f"data_tools.stages.{_module}")
gc.freeze()
if _is_enabled:
    gc.enable()
