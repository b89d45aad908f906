"""Buffers and blocks of the loss, and the checks that a GPU is not waited for."""

from __future__ import annotations

import threading

import pytest
import torch

from qwen_megatron.platforms.device_checks import require
from qwen_megatron.platforms.vocabulary import BLOCK_TOKENS, block_tokens, counted_rows, exponentiate, logits_buffer


def test_the_cpu_keeps_the_buffer_for_the_next_micro_batch() -> None:
    like = torch.empty(1, dtype=torch.bfloat16)
    with torch.inference_mode():
        first = logits_buffer(6, 9, like)
    second = logits_buffer(6, 9, like)
    assert second.data_ptr() == first.data_ptr()
    assert logits_buffer(2, 9, like).data_ptr() == first.data_ptr(), "a block with fewer tokens"
    assert not second.is_inference(), "training could not overwrite it"
    assert logits_buffer(6, 9, like.float()).dtype == torch.float32
    assert logits_buffer(5, 9, like).shape == (5, 9)


def test_threads_do_not_share_a_buffer() -> None:
    like, found = torch.empty(1), []
    mine = logits_buffer(3, 4, like)
    thread = threading.Thread(target=lambda: found.append(logits_buffer(3, 4, like)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != mine.data_ptr()


def test_counted_tokens() -> None:
    rows = counted_rows(torch.tensor([0.0, 1.0, 0.0, 0.25]))
    assert rows is not None
    assert rows.tolist() == [1, 3]
    assert counted_rows(torch.ones(3)) is None, "nothing to leave out"
    assert counted_rows(torch.zeros(3, device="meta")) is None, "the host would wait for their number"


def test_blocks_of_the_cpu_are_small() -> None:
    assert block_tokens(torch.empty(152_064, 1)) == BLOCK_TOKENS


def test_rows_without_columns() -> None:
    highest, total = exponentiate(torch.empty(3, 0, dtype=torch.bfloat16))
    assert torch.equal(highest, torch.full((3,), -torch.inf))
    assert torch.equal(total, torch.zeros(3))


def test_a_broken_promise_is_told_with_its_numbers() -> None:
    require(torch.tensor(True), lambda: pytest.fail("nobody asked"))
    with pytest.raises(RuntimeError, match="it was 3"):
        require(torch.tensor(False), lambda: f"it was {1 + 2}")
