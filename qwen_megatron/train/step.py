"""One optimizer step of one model, and one pass that only measures."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from qwen_megatron.data.batch import Batch, split_sequence
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.errors import TrainingError
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import unwrapped
from qwen_megatron.model.dropout import row_keys
from qwen_megatron.model.heads import LOGITS
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms.transfer import begun_ahead
from qwen_megatron.train.micro_batches import StageBatch, StepBatches, fanned_out, on_stage
from qwen_megatron.train.objective import Objective
from qwen_megatron.train.optimizer import squared_gradient_norm, update
from qwen_megatron.train.step_guard import Measured, StepGuard, Verdict, agreed
from qwen_megatron.train.trainable import Trainable

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step measured, equal on all ranks.

    Attributes:
        loss: Mean over what the objective counts in the whole batch.
        grad_norm: L2 norm of the gradient before clipping.
        metrics: Means of the objective's further sums.
        updated: Whether the weights were changed; not if the step was skipped.
        spike: `transient` or `reproducible` if the loss jumped; None otherwise.
    """

    loss: float
    grad_norm: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    updated: bool = True
    spike: str | None = None


def train_step(
    trainable: Trainable,
    objective: Objective,
    batches: Iterator[Batch],
    *,
    shape: BatchShape,
    num_microbatches: int,
    step: int,
    learning_rate: float,
    clip_grad: float,
    guard: StepGuard | None = None,
) -> StepResult:
    """Forward, backward and update over one global batch.

    Args:
        trainable: Trained in place.
        objective: What to minimise.
        batches: This rank's micro-batches; exactly a step's worth is taken.
        shape: Of each micro-batch.
        num_microbatches: Micro-batches of this step on every rank.
        step: Number of this step, for the masks of dropout and for messages.
        learning_rate: Rate of this step.
        clip_grad: Largest gradient norm; 0 for any.
        guard: Says whether the gradient may be applied; None refuses what is not finite.
    Raises:
        TrainingError: if loss or gradient is not finite on any rank; no weight has been touched then.
    """
    guard = guard or StepGuard()
    taken = StepBatches(batches, num_microbatches, keeps=guard.may_run_again)
    measure = functools.partial(measure_gradient, trainable, objective, taken, shape, step)
    with trainable.timed():
        verdict = guard.decide(trainable, step, measure)
        measured = verdict.measured
        if verdict.spike is not None:
            log_spike(trainable.groups, step, verdict)
        if verdict.may_update:
            with trainable.timers.enter("optimizer"):
                update(trainable.trained, learning_rate, clip_grad, measured.grad_norm)
    return StepResult(
        loss=measured.loss,
        grad_norm=measured.grad_norm,
        metrics=measured.metrics,
        updated=verdict.may_update,
        spike=verdict.spike,
    )


def measure_gradient(
    trainable: Trainable, objective: Objective, batches: StepBatches, shape: BatchShape, step: int, limit: float
) -> Measured:
    """Leaves the gradient of the micro-batches in the optimizer's buffers; no weight is touched.

    Args:
        trainable, objective, batches, shape, step: As for `train_step`.
        limit: Loss above which the step is not calm.
    """
    with trainable.timers.enter("optimizer"):
        for chunk in trainable.model_chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        trainable.trained.zero_grad()
    outputs = forward_backward(
        trainable, objective, iter(batches), shape=shape, num_microbatches=batches.count, forward_only=False, step=step
    )
    with trainable.timers.enter("communication"):
        own_loss, sums = reduced_sums(outputs, objective, trainable.groups)
    with trainable.timers.enter("optimizer"):
        trainable.trained.prepare_grads()
        norm = squared_gradient_norm(trainable.trained).sqrt()
    mean_loss = sums[0] / sums[1]
    sound = torch.stack((mean_loss.isfinite() & norm.isfinite(), ~(mean_loss > limit)))
    everywhere = agreed(trainable, sound)
    with trainable.timers.enter("optimizer"):
        # The one read of a step: the host waits for forward and backward pass, and for the other ranks.
        own, total_norm, is_finite, is_calm, *numbers = torch.cat(
            (own_loss[None], norm[None], everywhere, sums)
        ).tolist()
    loss, metrics = means_of(numbers, objective)
    return Measured(
        loss=loss,
        grad_norm=total_norm,
        own_loss=own,
        is_finite=bool(is_finite),
        is_calm=bool(is_calm),
        metrics=metrics,
    )


def log_spike(groups: Groups, step: int, verdict: Verdict) -> None:
    """Warns of a loss spike, on rank 0."""
    if groups.rank == 0:
        log.warning(
            "step %d: loss %.4f is above %.4f, far from recent ones; run again: %.4f, so it is %s",
            step,
            verdict.first_loss,
            verdict.limit,
            verdict.measured.loss,
            verdict.spike,
        )


@torch.no_grad()
def evaluate(
    trainable: Trainable, objective: Objective, batches: Iterator[Batch], *, shape: BatchShape, num_microbatches: int
) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over micro-batches, equal on all ranks; the model is in evaluation mode meanwhile."""
    for chunk in trainable.model_chunks:
        chunk.eval()
    with trainable.timed():
        outputs = forward_backward(
            trainable, objective, batches, shape=shape, num_microbatches=num_microbatches, forward_only=True, step=0
        )
        with trainable.timers.enter("communication"):
            measured = means(outputs, objective, trainable.groups)
    if trainable.optimizer is not None:
        for chunk in trainable.model_chunks:
            chunk.train()
    return measured


def forward_backward(
    trainable: Trainable,
    objective: Objective,
    batches: Iterator[Batch],
    *,
    shape: BatchShape,
    num_microbatches: int,
    forward_only: bool,
    step: int,
) -> list[torch.Tensor]:
    """Sends micro-batches through Megatron's schedule, on the model's own groups.

    Each is taken when the first forward pass asks for it, and let go when backward pass and loss are done with it.

    Returns:
        On the last stage, for each micro-batch, fp64 [2 + metrics]: total, count, sums of the metrics.
    """
    outputs: list[torch.Tensor] = through_schedule(
        trainable,
        functools.partial(forward_step, objective=objective),
        batches,
        shape=shape,
        num_microbatches=num_microbatches,
        forward_only=forward_only,
        context=functools.partial(attention_context, trainable, step),
    )
    return outputs


def nothing_to_know(batch: Batch) -> None:
    """The context of layers that need nothing of a micro-batch but its hidden states."""


def through_schedule(
    trainable: Trainable,
    step_function: Callable[..., Any],
    batches: Iterator[Batch],
    *,
    shape: BatchShape,
    num_microbatches: int,
    forward_only: bool,
    context: Callable[[Batch], AttentionContext | None] = nothing_to_know,
) -> list[Any]:
    """Sends micro-batches through Megatron's schedule with any forward step of Megatron's form.

    Args:
        trainable, batches, shape, num_microbatches, forward_only: As for `forward_backward`.
        step_function: Takes `StageBatch`es.
        context: What the layers get to know of a micro-batch.
    Returns:
        On the last stage, for each micro-batch, what the loss function of the step reports.
    """
    groups = trainable.groups
    # Every model chunk of an interleaved pipeline goes through the same micro-batches at its own pace.
    streams = fanned_out(own_parts(trainable, batches, num_microbatches, context), len(trainable.model_chunks))
    schedule = get_forward_backward_func(
        pp_size=groups.pp.size(), vp_size=trainable.models[0].config.virtual_pipeline_model_parallel_size
    )
    with trainable.platform.products(trainable.models[0].config.params_dtype):
        reported: list[Any] = schedule(
            forward_step_func=step_function,
            data_iterator=streams,
            model=trainable.model_chunks,
            num_microbatches=num_microbatches,
            seq_length=shape.seq_length,
            micro_batch_size=shape.micro_batch_size,
            forward_only=forward_only,
            p2p_communicator=trainable.pipeline,
            pg_collection=groups.collection,
        )
    return reported


def own_parts(
    trainable: Trainable, batches: Iterator[Batch], count: int, context: Callable[[Batch], AttentionContext | None]
) -> Iterator[StageBatch]:
    """What this rank works on of each of the next `count` micro-batches, on its device.

    Where copies run beside the computations, those of a micro-batch begin before the one before it is handed out.
    """
    copies = trainable.copies

    def begin(part: Batch) -> Callable[[], StageBatch]:
        # Made of what is still on the host.
        known = context(part)
        return copies.begin(functools.partial(on_stage, part, known, trainable.groups))

    return begun_ahead(host_parts(trainable, batches, count), begin, copies.ahead)


def host_parts(trainable: Trainable, batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """This rank's part of each of the next micro-batches; waiting for one is a phase of its own."""
    for _ in range(count):
        with trainable.timers.enter("data"):
            batch = next(batches, None)
            if batch is None:
                return
            part = split_sequence(batch, trainable.groups.cp)
        del batch
        yield part


def forward_step(
    batches: Iterator[StageBatch], model: torch.nn.Module, *, objective: Objective
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Megatron's forward step: one micro-batch through this rank's stage."""
    part = next(batches)
    batch = part.batch
    request = objective.request(batch) if unwrapped(model).post_process else LOGITS
    output = model(batch.tokens_bs, None, part.context, request)

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = objective.measure(output, batch)
        # Copied: Megatron scales the total in place for the backward pass.
        numbers = [sums.total, sums.count, *(sums.metrics[name] for name in objective.metric_names)]
        return sums.total, sums.count, torch.stack([number.detach().to(torch.float64, copy=True) for number in numbers])

    return output, loss


def attention_context(trainable: Trainable, step: int, batch: Batch) -> AttentionContext | None:
    """What the layers get to know of a micro-batch in a step; None where there is nothing to know."""
    seed = trainable.dropout_seed
    if batch.document_ids_bs is None and seed is None:
        return None
    return AttentionContext(
        document_ids_bs=batch.document_ids_bs,
        dropout_keys_b=None if seed is None else row_keys(seed, step, batch.row_names),
    )


def reduced_sums(
    outputs: list[torch.Tensor], objective: Objective, groups: Groups
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over micro-batches and replicas, then told to earlier stages; on the device, nobody waits for them here.

    Returns:
        fp64 scalar, this rank's sum of losses (0 on earlier stages), and fp64 [2 + metrics]: total, count, metrics.
    """
    sums = torch.zeros(2 + len(objective.metric_names), dtype=torch.float64, device=groups.device)
    if groups.is_last_stage:
        sums += torch.stack(outputs).sum(dim=0)
    own_loss = sums[0].clone()
    if groups.is_last_stage:
        dist.all_reduce(sums, group=groups.dp_cp)
    dist.broadcast(sums, src=groups.last_stage_rank, group=groups.pp)
    return own_loss, sums


def means_of(sums: list[float], objective: Objective) -> tuple[float, dict[str, float]]:
    """Sum over sum.

    Args:
        sums: Total, count, sums of the metrics.
        objective: Names the metrics.
    Returns:
        Mean loss, and the mean of each metric.
    Raises:
        TrainingError: if nothing counts.
    """
    total, count, *metrics = sums
    names = objective.metric_names
    return mean(total, count), {name: mean(value, count) for name, value in zip(names, metrics, strict=True)}


def means(outputs: list[torch.Tensor], objective: Objective, groups: Groups) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over micro-batches and replicas, as numbers; see `means_of`."""
    return means_of(reduced_sums(outputs, objective, groups)[1].tolist(), objective)


def mean(total: float, count: float) -> float:
    """The mean of what counts in a batch.

    Raises:
        TrainingError: if nothing counts.
    """
    if not count:
        raise TrainingError("nothing counts in this batch: every label is masked; look at the samples of this step")
    return total / count
