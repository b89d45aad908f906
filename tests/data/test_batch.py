"""From rows of tokens to what the model takes."""

from __future__ import annotations

import numpy as np
import torch

from qwen_megatron.data.batch import make_batch
from qwen_megatron.data.blended import SampleId

END = 9


def test_inputs_and_labels_are_shifted_by_one() -> None:
    rows = [np.arange(10, 16), np.arange(20, 26)]
    ids = [SampleId(corpus=0, sample=number, epoch=0) for number in range(2)]
    batch = make_batch(rows, ids, 5, END, mask_documents=True)
    assert batch.tokens_bs.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]
    assert batch.labels_bs.tolist() == [[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]
    assert batch.position_ids_bs.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.loss_mask_bs.tolist() == [[1.0] * 5] * 2
    assert batch.samples == tuple(ids)
    for name in ("tokens_bs", "labels_bs", "position_ids_bs", "document_ids_bs"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.loss_mask_bs.dtype == torch.float32


def test_documents_that_see_each_other_have_no_ids() -> None:
    assert make_batch([np.array([1, END, 2])], [None], 2, END).document_ids_bs is None


def test_document_ids_count_the_ends_before_a_token() -> None:
    rows = [
        np.array([1, END, 2, 3, END, END, 4, END]),
        np.array([1, 2, 3, 4, 5, 6, 7, END]),
        np.array([END, 1, 2, 3, 4, 5, 6, 7]),
    ]
    batch = make_batch(rows, [None] * 3, 7, END, mask_documents=True)
    # The end token belongs to the document that it ends; an end in the last label is not among the inputs.
    assert batch.document_ids_bs.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0] * 7, [0, 1, 1, 1, 1, 1, 1]]


def test_filler_rows_count_for_nothing() -> None:
    batch = make_batch([None, np.arange(1, 5)], [None, SampleId(corpus=0, sample=3, epoch=0)], 3, END)
    assert batch.loss_mask_bs.tolist() == [[0.0] * 3, [1.0] * 3]
    assert batch.tokens_bs.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert batch.samples[0] is None


def test_a_batch_owns_its_memory() -> None:
    row = np.arange(6)
    batch = make_batch([row], [None], 5, END)
    row[:] = 77
    batch.tokens_bs[0, 1] = 55
    assert batch.labels_bs.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.tokens_bs.tolist() == [[0, 55, 2, 3, 4]]
