"""Writes the tensors of a save, and remembers between saves what the ranks have told each other about them.

What a rank writes needs nobody's consent: replicas are left out beforehand, so no two ranks write the same. Only rank 0
must know of all, for the metadata that say where each tensor lies. It is told at the first save, and again when a key,
a shape, a dtype or a place in a file has changed on any rank. Otherwise the metadata are those of the save before, byte
for byte, and the ranks exchange three numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from qwen_megatron.checkpoint.agreement import failing_together, raise_together
from qwen_megatron.checkpoint.plan_exchange import RankPlan, described, merged, parse
from qwen_megatron.checkpoint.read_tensors import METADATA
from qwen_megatron.checkpoint.snapshot import Arena, MemoryFileSystem
from qwen_megatron.checkpoint.storage import FinalFileWriter, without_zip_checksums
from qwen_megatron.errors import CheckpointError
from qwen_megatron.parallel.objects import anywhere, gather


class PlanMemory:
    """What was agreed at the last save; one for each row of saves of the same tensors.

    Attributes:
        mine: What this rank wrote where; None before the first save.
        metadata: Content of the metadata's file, on rank 0.
        times_gathered: How often all ranks told rank 0 what they write.
    """

    def __init__(self) -> None:
        self.mine: RankPlan | None = None
        self.metadata = b""
        self.times_gathered = 0


def write_tensors(
    tensors: Mapping[str, ShardedTensor], folder: Path, files: FileSystem, memory: PlanMemory | None = None
) -> None:
    """Writes one file a rank, and on rank 0 the metadata that say where each tensor lies. Collective.

    Megatron-Core's own writer forks processes on every rank for each save. torch's planning gathers what all ranks
    write at each save, pickled.

    Args:
        tensors: What this rank writes; replicas are left out.
        folder: Of the checkpoint.
        files: Where the bytes go.
        memory: Of the saves before; None for a save that stands alone.
    Raises:
        CheckpointError: on every rank, with what went wrong on any.
    """
    memory = memory or PlanMemory()
    problem, mine = None, None
    try:
        mine = write_own(tensors, folder, files)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must not wait
        problem = f"rank {dist.get_rank()}: {error}"
    raise_together(problem)
    assert mine is not None
    metadata = memory.metadata
    has_changed = anywhere(mine != memory.mine)
    if has_changed:
        plans = gather(described(mine), parse)
        with failing_together():
            if dist.get_rank() == 0:
                metadata = metadata_of(plans)
    with failing_together():
        if dist.get_rank() == 0:
            with files.create_stream(folder / METADATA, "wb") as stream:
                stream.write(metadata)
    # Not before all is well on all ranks: what they remember must belong together.
    memory.mine, memory.metadata = mine, metadata
    memory.times_gathered += has_changed


def write_own(tensors: Mapping[str, ShardedTensor], folder: Path, files: FileSystem) -> RankPlan:
    """Writes this rank's file; no communication.

    Returns:
        What it wrote where.
    """
    flat, _, _ = _replace_state_dict_keys_with_sharded_keys(dict(tensors), keep_only_main_replica=True)
    rank = dist.get_rank()
    planner, writer = new_planner(), FinalFileWriter(folder, files)
    planner.set_up_planner(mcore_to_pyt_state_dict(flat, False), is_coordinator=rank == 0)
    # What torch calls no collectives: the file gets its name from the rank, not from a plan of all.
    writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=False)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    with without_zip_checksums():
        results: list[WriteResult] = writer.write_data(planner.finish_plan(plan), planner).wait()
    return RankPlan.of(plan, results)


def metadata_of(plans: list[RankPlan]) -> bytes:
    """Content of the metadata's file.

    Args:
        plans: Of all ranks, by rank.
    Raises:
        CheckpointError: if two ranks write the same, or tensors are not covered.
    """
    planner = new_planner()
    planner.set_up_planner({}, is_coordinator=True)
    try:
        global_plans, metadata = planner.create_global_plan([SavePlan(plan.write_items()) for plan in plans])
    except (ValueError, AssertionError) as error:
        raise CheckpointError(f"the ranks' parts do not fit together: {error}") from error
    if [len(plan.items) for plan in global_plans] != [len(plan.items) for plan in plans]:
        raise CheckpointError("two ranks would write the same part of a tensor")
    buffer = MemoryFileSystem(Arena())
    # Without the id and the hidden folder's name that torch makes up for each save: nobody reads them.
    writer = FinalFileWriter(Path(), buffer)
    writer.finish(metadata, merged(plans, global_plans))
    return b"".join(buffer.files[METADATA])


def new_planner() -> Any:
    """A planner that writes what each rank owns, replicated parts not left out."""
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    # Untyped in Megatron-Core.
    return planner
