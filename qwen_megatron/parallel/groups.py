"""Process groups of one layout: started here, passed everywhere else as an argument."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.rendezvous import Member, join_job
from qwen_megatron.platforms import Platform
from qwen_megatron.platforms.shims.gloo import one_event_loop


@dataclass(frozen=True, kw_only=True)
class Groups:
    """This rank's place in the layout and the groups it talks to.

    Attributes:
        collection: Megatron-Core's groups (tp, pp, dp, dp_cp, embd, ...).
        readers: Ranks of one pipeline stage and one replica (tp_cp), which run the same micro-batches in one order:
            one of them reads for all. Takes tensors of the host.
        rank: Number of this process in the whole job.
        world_size: Processes in the whole job.
        device: Where this rank's tensors live.
    """

    collection: ProcessGroupCollection
    readers: dist.ProcessGroup
    rank: int
    world_size: int
    device: torch.device

    @property
    def tp(self) -> dist.ProcessGroup:
        """Tensor-parallel group."""
        return self.collection.tp

    @property
    def pp(self) -> dist.ProcessGroup:
        """Pipeline-parallel group."""
        return self.collection.pp

    @property
    def cp(self) -> dist.ProcessGroup:
        """Context-parallel group."""
        return self.collection.cp

    @property
    def dp(self) -> dist.ProcessGroup:
        """Data-parallel group."""
        return self.collection.dp

    @property
    def dp_cp(self) -> dist.ProcessGroup:
        """Ranks that hold the same weights: replicas, and the parts of a sequence within each."""
        return self.collection.dp_cp

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the first pipeline stage."""
        return self.pp.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the last pipeline stage."""
        return self.pp.rank() == self.pp.size() - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage in this rank's pipeline."""
        return dist.get_process_group_ranks(self.pp)[-1]


def start_process_group(platform: Platform, timeout_seconds: float, member: Member | None = None) -> torch.device:
    """Starts the collectives of a job.

    Args:
        platform: Machine.
        timeout_seconds: A collective fails after it.
        member: Place in a job whose ranks have met; None joins the launcher's job first.
    Returns:
        The device of this rank.
    Raises:
        PlatformError: as `join_job` does.
    """
    if member is None:
        member = join_job(platform, timeout_seconds)
    if parallel_state.model_parallel_is_initialized():
        # Groups of a job that ended without leaving them: nothing answers there any more.
        parallel_state.destroy_model_parallel()
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group(
        platform.backend,
        store=member.store,
        rank=member.rank,
        world_size=member.world_size,
        timeout=timeout,
        **platform.group_options(member.device),
    )
    return member.device


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

    A collective in any of them fails after `timeout_seconds`. Any number of models may be built on the groups. A
    process has one layout, because Megatron-Core keeps it in its module: asking for the same again gives the same
    groups, and another one is refused until `destroy_groups` gives up the first.

    Raises:
        PlatformError: if this process has groups of another layout.
    """
    wanted = {
        "tensor": tensor_model_parallel_size,
        "pipeline": pipeline_model_parallel_size,
        "context": context_parallel_size,
        "virtual pipeline": virtual_pipeline_model_parallel_size,
    }
    if parallel_state.model_parallel_is_initialized():
        present = present_layout()
        if present != wanted:
            raise PlatformError(
                f"this process has groups of the layout {described(present)}, but {described(wanted)} is asked for; "
                "give up the first ones (parallel.groups.destroy_groups), or use another process"
            )
    else:
        with one_event_loop():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tensor_model_parallel_size,
                pipeline_model_parallel_size=pipeline_model_parallel_size,
                virtual_pipeline_model_parallel_size=virtual_pipeline_model_parallel_size,
                context_parallel_size=context_parallel_size,
                create_gloo_process_groups=False,
                # Minutes to Megatron-Core, which makes a timedelta of them: fractions count.
                distributed_timeout_minutes=timeout_seconds / 60,
            )
    collection = ProcessGroupCollection.use_mpu_process_groups()
    return Groups(
        collection=collection,
        readers=on_the_host(collection.tp_cp, timeout_seconds),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=device,
    )


@functools.cache
def on_the_host(group: dist.ProcessGroup, timeout_seconds: float) -> dist.ProcessGroup:
    """A group of the same ranks that sends tensors of the host: itself, but for NCCL; collective over the group."""
    if group.size() == 1 or dist.get_backend(group) != "nccl":
        return group
    made: dist.ProcessGroup = dist.new_group(
        dist.get_process_group_ranks(group),
        backend="gloo",
        timeout=timedelta(seconds=timeout_seconds),
        use_local_synchronization=True,
    )
    return made


def present_layout() -> dict[str, int | None]:
    """Sizes of the layout that Megatron-Core's module holds."""
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "context": parallel_state.get_context_parallel_world_size(),
        "virtual pipeline": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
    }


def described(layout: dict[str, int | None]) -> str:
    """A layout in words; sizes that are not set are left out."""
    return " x ".join(f"{name} {size}" for name, size in layout.items() if size is not None)


def destroy_groups() -> None:
    """Gives up the groups without talking to anybody: peers may be gone already."""
    on_the_host.cache_clear()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
