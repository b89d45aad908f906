"""A micro-batch as the model takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from qwen_megatron.data.protocol import Needs
from qwen_megatron.parallel.context import take_slices


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one data-parallel rank. Legend: b micro-batch, s sequence.

    Attributes:
        tokens_bs: [b, s] int64.
        labels_bs: [b, s] int64, the token after each.
        loss_mask_bs: [b, s] fp32, 1 where the label counts.
        position_ids_bs: [b, s] int64.
        document_ids_bs: [b, s] int64, number of the token's document within its row, which sees nothing of the others;
            whole sequences on every context-parallel rank, whose queries see keys of other ranks. None where tokens see
            all tokens before them.
        samples: Where the tokens come from, each of one row or of as many following ones; None marks a filler that
            counts for nothing.
        extras: What else an objective needs, by name; each [b, ...], whole on every rank.
    """

    tokens_bs: torch.Tensor
    labels_bs: torch.Tensor
    loss_mask_bs: torch.Tensor
    position_ids_bs: torch.Tensor
    document_ids_bs: torch.Tensor | None
    samples: tuple[object | None, ...]
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def row_names(self) -> tuple[object, ...]:
        """A name for each row that no other row of the run has: its sample, numbered where that has several rows."""
        per_sample = self.tokens_bs.size(0) // len(self.samples)
        if per_sample == 1:
            return self.samples
        return tuple(f"{sample}.{row}" for sample in self.samples for row in range(per_sample))

    def keeping(self, needs: Needs) -> Batch:
        """What a pipeline stage looks at; zeros that take no memory stand in place of the rest."""
        if needs == Needs():
            return self
        zeros_bs = torch.zeros((), dtype=torch.int64).expand(self.tokens_bs.shape)
        return Batch(
            tokens_bs=self.tokens_bs if needs.tokens else zeros_bs,
            labels_bs=self.labels_bs if needs.targets else zeros_bs,
            loss_mask_bs=self.loss_mask_bs if needs.targets else torch.zeros(()).expand(self.tokens_bs.shape),
            position_ids_bs=self.position_ids_bs if needs.tokens else zeros_bs,
            document_ids_bs=self.document_ids_bs,
            samples=self.samples,
            extras=self.extras if needs.targets else {},
        )

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors."""
        tensors = (self.tokens_bs, self.labels_bs, self.loss_mask_bs, self.position_ids_bs, *self.extras.values())
        documents = 0 if self.document_ids_bs is None else self.document_ids_bs.nbytes
        return sum(tensor.nbytes for tensor in tensors) + documents


def split_sequence(batch: Batch, group: dist.ProcessGroup) -> Batch:
    """The part of a batch that a context-parallel rank works on; the whole batch in a group of one."""
    return Batch(
        tokens_bs=take_slices(batch.tokens_bs, 1, group),
        labels_bs=take_slices(batch.labels_bs, 1, group),
        loss_mask_bs=take_slices(batch.loss_mask_bs, 1, group),
        position_ids_bs=take_slices(batch.position_ids_bs, 1, group),
        document_ids_bs=batch.document_ids_bs,
        samples=batch.samples,
        extras=batch.extras,
    )


def make_batch(
    rows: Sequence[np.ndarray | None],
    samples: Sequence[object | None],
    seq_length: int,
    end_of_document: int,
    *,
    mask_documents: bool = False,
) -> Batch:
    """Cuts rows of seq_length + 1 tokens into inputs and labels.

    Args:
        rows: int64 [seq_length + 1] each; None makes a filler row with loss mask 0.
        samples: Where each row comes from.
        seq_length: Tokens a row, without the last label.
        end_of_document: Token that ends a document.
        mask_documents: Documents in a row do not see each other.
    """
    empty = np.zeros(seq_length + 1, dtype=np.int64)
    tokens = torch.from_numpy(np.stack([empty if row is None else row for row in rows]))
    counts = torch.tensor([0.0 if row is None else 1.0 for row in rows])
    # Copies: with one row both slices are contiguous, and a change of the labels would reach the inputs.
    inputs, labels = tokens[:, :-1].clone(), tokens[:, 1:].clone()
    ends = (inputs == end_of_document).long()
    return Batch(
        tokens_bs=inputs,
        labels_bs=labels,
        loss_mask_bs=counts[:, None].expand(-1, seq_length).contiguous(),
        position_ids_bs=torch.arange(seq_length).expand(len(rows), -1).contiguous(),
        # The end token still belongs to the document that it ends.
        document_ids_bs=ends.cumsum(dim=1) - ends if mask_documents else None,
        samples=tuple(samples),
    )


def blank_batch(samples: Sequence[object | None], seq_length: int, *, rows_per_sample: int = 1) -> Batch:
    """A batch of zeros that takes no memory, for a stage that needs its samples and shapes only."""
    num_rows = len(samples) * rows_per_sample
    zeros_bs = torch.zeros((), dtype=torch.int64).expand(num_rows, seq_length)
    return Batch(
        tokens_bs=zeros_bs,
        labels_bs=zeros_bs,
        loss_mask_bs=torch.zeros(()).expand(num_rows, seq_length),
        position_ids_bs=zeros_bs,
        document_ids_bs=None,
        samples=tuple(samples),
    )
