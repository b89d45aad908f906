"""One optimizer step, and one pass over the held-out samples."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from qwen_megatron.data.batch import Batch, split_sequence
from qwen_megatron.model.dropout import row_keys
from qwen_megatron.model.loss import summed_loss
from qwen_megatron.model.row_context import RowContext
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.engine import Engine
from qwen_megatron.train.judge import Judge, Measured, Verdict
from qwen_megatron.train.optimizer import gradient_norm, update

log = logging.getLogger(__name__)

# Takes the model's output on the last stage and the batch; returns the scalar fp32 sum to minimise and the int32 number
# of tokens it is a sum of.
LossFunction = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step measured, equal on all ranks.

    Attributes:
        loss: Mean over the batch's counted tokens, nats.
        grad_norm: L2 norm of the gradient before clipping.
        updated: Whether the weights were changed; not if the step was skipped.
        spike: `transient` or `reproducible` if the loss jumped; None otherwise.
    """

    loss: float
    grad_norm: float
    updated: bool = True
    spike: str | None = None


def pretraining_loss(losses_bs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token loss: every label counts that the batch's mask counts."""
    return summed_loss(losses_bs, batch.loss_mask_bs.to(losses_bs.device))


def train_step(
    engine: Engine,
    batches: Iterator[Batch],
    *,
    step: int,
    learning_rate: float,
    clip_grad: float,
    num_microbatches: int | None = None,
    loss_function: LossFunction = pretraining_loss,
    judge: Judge | None = None,
) -> StepResult:
    """Forward, backward and update over one global batch.

    Args:
        engine: Model and optimizer, trained in place.
        batches: This rank's micro-batches; exactly a step's worth is taken.
        step: Number of this step, for the masks of dropout and for messages.
        learning_rate: Rate of this step.
        clip_grad: Largest gradient norm; 0 for any.
        num_microbatches: Micro-batches of this step on every rank; None for those of a full batch.
        loss_function: What to minimise.
        judge: Says whether the gradient may be applied; None refuses what is not finite.
    Raises:
        TrainingError: if loss or gradient is not finite on any rank; no weight has been touched then.
    """
    judge = judge or Judge()
    with engine.phases.enter("data"):
        taken = list(itertools.islice(batches, num_microbatches or engine.num_microbatches))
    measure = functools.partial(measure_gradient, engine, taken, loss_function, step)
    verdict = judge.decide(engine, step, measure(), measure)
    measured = verdict.measured
    if verdict.spike is not None:
        log_spike(engine.groups, step, verdict)
    if verdict.may_update:
        with engine.phases.enter("optimizer"):
            update(engine.optimizer, learning_rate, clip_grad, measured.grad_norm)
    return StepResult(loss=measured.loss, grad_norm=measured.grad_norm, updated=verdict.may_update, spike=verdict.spike)


def measure_gradient(engine: Engine, batches: list[Batch], loss_function: LossFunction, step: int) -> Measured:
    """Leaves the gradient of the micro-batches in the optimizer's buffers; no weight is touched."""
    with engine.phases.enter("optimizer"):
        for chunk in engine.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        engine.optimizer.zero_grad()
    outputs = forward_backward(engine, iter(batches), len(batches), loss_function, forward_only=False, step=step)
    own_loss = sum(output[0].item() for output in outputs) if engine.groups.is_last_stage else 0.0
    with engine.phases.enter("communication"):
        loss = mean_loss(outputs, engine.groups)
    with engine.phases.enter("optimizer"):
        engine.optimizer.prepare_grads()
        norm = gradient_norm(engine.optimizer)
    return Measured(loss=loss, grad_norm=norm, own_loss=own_loss)


def log_spike(groups: Groups, step: int, verdict: Verdict) -> None:
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
    engine: Engine, batches: Iterator[Batch], num_microbatches: int, loss_function: LossFunction = pretraining_loss
) -> float:
    """Mean loss over micro-batches, nats a token, equal on all ranks; the model is in evaluation mode meanwhile."""
    for chunk in engine.chunks:
        chunk.eval()
    loss = run_microbatches(engine, batches, num_microbatches, loss_function, forward_only=True)
    for chunk in engine.chunks:
        chunk.train()
    return loss


def run_microbatches(
    engine: Engine,
    batches: Iterator[Batch],
    num_microbatches: int,
    loss_function: LossFunction,
    *,
    forward_only: bool,
    step: int = 0,
) -> float:
    """Sends micro-batches through Megatron's schedule; returns the mean loss over all ranks' tokens."""
    outputs = forward_backward(engine, batches, num_microbatches, loss_function, forward_only=forward_only, step=step)
    with engine.phases.enter("communication"):
        return mean_loss(outputs, engine.groups)


def forward_backward(
    engine: Engine,
    batches: Iterator[Batch],
    num_microbatches: int,
    loss_function: LossFunction,
    *,
    forward_only: bool,
    step: int,
) -> list[torch.Tensor]:
    """Sends micro-batches through Megatron's schedule; returns fp64 (total loss, tokens) of each on the last stage."""
    # Every chunk of an interleaved pipeline goes through the same micro-batches at its own pace.
    with engine.phases.enter("data"):
        taken = itertools.islice(batches, num_microbatches)
        step_batches = [split_sequence(batch, engine.groups.cp) for batch in taken]
    with engine.platform.products(engine.models[0].config.params_dtype):
        outputs: list[torch.Tensor] = get_forward_backward_func()(
            forward_step_func=functools.partial(
                forward_step, loss_function=loss_function, context=functools.partial(row_context, engine, step)
            ),
            data_iterator=[iter(step_batches) for _ in engine.chunks],
            model=engine.chunks,
            num_microbatches=num_microbatches,
            seq_length=engine.seq_length,
            micro_batch_size=engine.micro_batch_size,
            forward_only=forward_only,
        )
    return outputs


def forward_step(
    batches: Iterator[Batch],
    model: torch.nn.Module,
    *,
    loss_function: LossFunction,
    context: Callable[[Batch], RowContext],
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Megatron's forward step: one micro-batch through this rank's stage."""
    batch = next(batches)
    device = next(model.parameters()).device
    rows = context(batch).packed
    # A mask promises that the sum of masked losses is minimised; only then can the model fuse them with its head.
    mask = batch.loss_mask_bs.to(device) if loss_function is pretraining_loss else None
    output = model(
        batch.tokens_bs.to(device),
        batch.position_ids_bs.to(device),
        None if rows is None else rows.to(device),
        labels=batch.labels_bs.to(device),
        loss_mask=mask,
    )

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, count = loss_function(output, batch)
        # Cloned: Megatron scales the total in place for the backward pass.
        return total, count, torch.stack((total.detach().clone().double(), count.double()))

    return output, loss


def row_context(engine: Engine, step: int, batch: Batch) -> RowContext:
    """What the layers get to know of a micro-batch's rows in a step."""
    seed = engine.dropout_seed
    return RowContext(
        document_ids_bs=batch.document_ids_bs if engine.mask_documents else None,
        dropout_keys_b=None if seed is None else row_keys(seed, step, batch.samples),
    )


def mean_loss(outputs: list[torch.Tensor], groups: Groups) -> float:
    """Sum over sum of (total, count) pairs: over micro-batches and replicas, then told to earlier stages."""
    totals = torch.zeros(2, dtype=torch.float64, device=groups.device)
    if groups.is_last_stage:
        totals += torch.stack(outputs).sum(dim=0)
        dist.all_reduce(totals, group=groups.dp_cp)
    dist.broadcast(totals, src=groups.last_stage_rank, group=groups.pp)
    total, count = totals.tolist()
    return total / count
