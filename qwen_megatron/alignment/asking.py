"""Passes that only ask: what a model says of each row, without a gradient, told to all stages of its pipeline.

Legend: b rows, s positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from qwen_megatron.alignment.experience import pieces
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.model.builder import unwrapped
from qwen_megatron.model.heads import LOGITS, HeadRequest, Output
from qwen_megatron.train.micro_batches import StageBatch
from qwen_megatron.train.step import through_schedule
from qwen_megatron.train.trainable import Trainable

Request = Callable[[Batch], HeadRequest]


def scalars_of(batch: Batch) -> HeadRequest:
    """Asks a value or reward model."""
    return HeadRequest(output=Output.SCALARS)


@torch.no_grad()
def ask(trainable: Trainable, request: Request, rows: Batch, *, micro_batch_size: int, width: int = 1) -> torch.Tensor:
    """What a model's last stage answers for every row, on all ranks of the replica. Collective over them alone.

    Args:
        trainable: In evaluation mode meanwhile.
        request: What is asked of a micro-batch.
        rows: Of this replica.
        micro_batch_size: Rows that are computed at a time; divides them.
        width: Numbers that are answered for each position.
    Returns:
        [b, s] fp32 on the CPU; [b, s, width] if that is not 1.
    """
    num_rows, seq_length = rows.tokens_bs.shape
    for chunk in trainable.model_chunks:
        chunk.eval()
    with trainable.timed():
        answers = through_schedule(
            trainable,
            functools.partial(asking_step, request=request),
            pieces(rows, micro_batch_size),
            shape=BatchShape(micro_batch_size=micro_batch_size, seq_length=seq_length),
            num_microbatches=num_rows // micro_batch_size,
            forward_only=True,
        )
        groups = trainable.groups
        shape = (num_rows, seq_length) if width == 1 else (num_rows, seq_length, width)
        told = torch.cat(answers) if groups.is_last_stage else torch.empty(shape, device=groups.device)
        if groups.pp.size() > 1:
            with trainable.timers.enter("communication"):
                dist.broadcast(told, src=groups.last_stage_rank, group=groups.pp)
    return told.view(shape).cpu()


def asking_step(
    batches: Iterator[StageBatch], model: torch.nn.Module, *, request: Request
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Megatron's forward step whose report is the answer itself."""
    batch = next(batches).batch
    asked = request(batch) if unwrapped(model).post_process else LOGITS
    output = model(batch.tokens_bs, None, None, asked)

    def report(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nothing = torch.zeros((), dtype=torch.int32, device=output.device)
        return nothing.float(), nothing, output.float()

    return output, report
