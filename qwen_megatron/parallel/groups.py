"""Process groups of one layout: started here, passed everywhere else as an argument."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.meeting import meet
from qwen_megatron.platforms import Platform


@dataclass(frozen=True, kw_only=True)
class Groups:
    """This rank's place in the layout and the groups it talks to.

    Attributes:
        collection: Megatron-Core's groups (tp, pp, dp, dp_cp, embd, ...).
        rank: Number of this process in the whole job.
        world_size: Processes in the whole job.
        device: Where this rank's tensors live.
    """

    collection: ProcessGroupCollection
    rank: int
    world_size: int
    device: torch.device

    @property
    def tp(self) -> dist.ProcessGroup:
        return self.collection.tp

    @property
    def pp(self) -> dist.ProcessGroup:
        return self.collection.pp

    @property
    def cp(self) -> dist.ProcessGroup:
        return self.collection.cp

    @property
    def dp(self) -> dist.ProcessGroup:
        return self.collection.dp

    @property
    def dp_cp(self) -> dist.ProcessGroup:
        """Ranks that hold the same weights: replicas, and the parts of a sequence within each."""
        return self.collection.dp_cp

    @property
    def is_first_stage(self) -> bool:
        return self.pp.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp.rank() == self.pp.size() - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage in this rank's pipeline."""
        return dist.get_process_group_ranks(self.pp)[-1]


def start_process_group(
    platform: Platform, timeout_seconds: float, start_timeout_seconds: float | None = None
) -> torch.device:
    """Joins the job that torchrun started, or makes a job of one process where it did not.

    Args:
        platform: Machine.
        timeout_seconds: A collective fails after it.
        start_timeout_seconds: All ranks have come by then; None for `timeout_seconds`.
    Returns:
        The device of this rank.
    Raises:
        PlatformError: if torchrun's variables are incomplete, or a rank does not come.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if "WORLD_SIZE" not in os.environ:
        dist.init_process_group(platform.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return platform.device(0)
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise PlatformError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun, or unset WORLD_SIZE"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = platform.device(int(os.environ["LOCAL_RANK"]))
    start = timeout_seconds if start_timeout_seconds is None else start_timeout_seconds
    store = meet(open_store(rank, start), rank, world_size, start)
    dist.init_process_group(platform.backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return device


def open_store(rank: int, timeout_seconds: float) -> dist.Store:
    """A connection to the job's store: torchrun's agent has it, or rank 0 where another launcher started the job.

    Raises:
        PlatformError: if nobody answers there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(
            host,
            port,
            is_master=hosts_store,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
            multi_tenant=True,
        )
    except RuntimeError as error:
        raise PlatformError(
            f"rank {rank}: no store at {host}:{port} (MASTER_ADDR, MASTER_PORT) within {timeout_seconds:g} s: {error}"
        ) from error


def build_groups(
    *,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    virtual_pipeline_model_parallel_size: int | None = None,
    context_parallel_size: int = 1,
    device: torch.device,
    timeout_seconds: float,
) -> Groups:
    """Splits the started job into groups, in Megatron's order: tensor fastest, then context, data, pipeline.

    A collective in any of them fails after `timeout_seconds`. Megatron-Core holds the groups of the layout in its
    module; calling this again replaces them.
    """
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_model_parallel_size,
        context_parallel_size=context_parallel_size,
        create_gloo_process_groups=False,
        # Minutes to Megatron-Core, which makes a timedelta of them: fractions count.
        distributed_timeout_minutes=timeout_seconds / 60,
    )
    return Groups(
        collection=ProcessGroupCollection.use_mpu_process_groups(),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=device,
    )


def leave(groups: Groups | None) -> None:
    """Gives up the groups without talking to anybody: peers may be gone already."""
    if groups is not None and parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
