"""Whether ranks that must hold the same weights do, and a hash of all weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

import torch
import torch.distributed as dist

from qwen_megatron.errors import ReplicaError
from qwen_megatron.parallel.objects import all_gather, dict_of, of_type
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.trainable import MAIN, Trainable


class WeightConsistencyHook(Hook):
    """Compares checksums of the weights over ranks every `interval` steps; stands before the hook that saves.

    Replicas hold the same weights, and tensor-parallel ranks the same norms and biases of rows. Nothing in training
    brings back together what has drifted apart: a gradient norm clipped on some ranks only, or a flipped bit, would go
    on unseen. The hash of all weights, moments left out, goes to metrics.jsonl: two runs with the same one are equal.

    Args:
        interval: Steps between checks.
    """

    def __init__(self, interval: int):
        self.interval = interval

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step % self.interval:
            return
        trainables = run.trainables.values()
        with run.timers.enter("weight consistency"), contextlib.ExitStack() as gathered:
            for trainable in trainables:
                gathered.enter_context(gathered_weights(trainable))
                check_weight_consistency(trainable, record.step)
            row = {"step": record.step, "parameter_hash": parameter_hash(trainables)}
        for hook in run.hooks:
            hook.on_row(run, row)


@contextlib.contextmanager
def gathered_weights(trainable: Trainable) -> Iterator[None]:
    """Inside, every weight is up to date on every rank: overlapped, they only arrive in the next forward pass."""
    overlapped = trainable.optimizer is not None and trainable.model_chunks[0].ddp_config.overlap_param_gather
    for chunk in trainable.model_chunks if overlapped else ():
        chunk.disable_forward_pre_hook(param_sync=True)
    yield
    for chunk in trainable.model_chunks if overlapped else ():
        chunk.enable_forward_pre_hook()


def check_weight_consistency(trainable: Trainable, step: int) -> None:
    """Compares the weights that ranks must hold alike; collective.

    Raises:
        ReplicaError: on every rank, naming weights and ranks of those that differ from most.
    """
    names, sums = [], []
    for index, model in enumerate(trainable.models):
        for name, weight in model.named_parameters():
            # Split over tensor-parallel ranks, it is compared with replicas only, as a weight of another name.
            split = getattr(weight, "tensor_model_parallel", False)
            part = f" (part {trainable.groups.tp.rank()})" if split else ""
            chunk = "" if len(trainable.models) == 1 else f"chunk {index}: "
            model_name = "" if trainable.name == MAIN else f"{trainable.name}: "
            names.append(f"{model_name}{chunk}{name}{part}")
            sums.append(checksum(weight))
    mine = torch.stack(sums).cpu()
    problem = find_differences(trainable, names, mine)
    if problem:
        raise ReplicaError(
            f"step {step}: ranks that must hold the same weights do not: {problem}. A machine may be ill; start again, "
            "which goes on from the last checkpoint"
        )


def find_differences(trainable: Trainable, names: list[str], mine: torch.Tensor) -> str:
    """In words, the same on every rank; empty if there are none.

    One small collective where all is well: the largest and smallest sum of every weight in this rank's stage.
    """
    group = trainable.groups.collection.tp_dp_cp
    replicas = trainable.groups.dp_cp
    # Names are the same and in the same order on all ranks of a stage, but for the numbers of parts.
    both = torch.stack((mine, -mine)).to(trainable.groups.device)
    split = torch.tensor([" (part " in name for name in names], device=trainable.groups.device)
    among_replicas, in_stage = both.clone(), both
    dist.all_reduce(among_replicas, op=dist.ReduceOp.MAX, group=replicas)
    dist.all_reduce(in_stage, op=dist.ReduceOp.MAX, group=group)
    extremes = torch.where(split, among_replicas, in_stage)
    differs = torch.tensor(
        [bool((extremes[0] != -extremes[1]).any())], dtype=torch.int32, device=trainable.groups.device
    )
    dist.all_reduce(differs, op=dist.ReduceOp.MAX)
    if not differs.item():
        return ""
    stage = trainable.groups.pp.rank()
    told = {f"stage {stage}, {name}": value for name, value in zip(names, mine.tolist(), strict=True)}
    return describe_differences(all_gather(told, dict_of(of_type(int))))


def describe_differences(everyone: list[dict[str, int]]) -> str:
    """Names the ranks whose checksum of a weight is not the most common one, all of them where there is none.

    Args:
        everyone: For each rank, checksums by the weight's name.
    """
    holders: dict[str, dict[int, int]] = defaultdict(dict)
    for rank, sums in enumerate(everyone):
        for name, value in sums.items():
            holders[name][rank] = value
    told = []
    for name, values in holders.items():
        ranked = Counter(values.values()).most_common()
        if len(ranked) == 1:
            continue
        tied = ranked[0][1] == ranked[1][1]
        odd = [rank for rank, value in values.items() if tied or value != ranked[0][0]]
        others = "have different values" if tied else f"differ from the other {ranked[0][1]}"
        told.append(f"{name}: ranks {', '.join(map(str, odd))} {others}")
    return "; ".join(told[:8]) + (f"; and {len(told) - 8} more" if len(told) > 8 else "")


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 scalar on the tensor's device: the sum of its bits as integers; any flipped bit changes it."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().view(words).sum(dtype=torch.int64)


def parameter_hash(trainables: Collection[Trainable]) -> str:
    """Of the fp32 weights that optimizers update, over all ranks; equal on all of them, and layout-dependent."""
    groups = next(iter(trainables)).groups
    optimizers = [trainable.optimizer.optimizer for trainable in trainables if trainable.optimizer is not None]
    sums = [
        checksum(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    ]
    text = repr([value.item() for value in sums]).encode()
    mine = torch.tensor(
        [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)], device=groups.device
    )
    everyone = torch.empty(groups.world_size, dtype=torch.int64, device=groups.device)
    dist.all_gather_into_tensor(everyone, mine)
    return hashlib.blake2b(repr(everyone.tolist()).encode(), digest_size=16).hexdigest()
