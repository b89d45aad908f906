"""Collectives of one rank are left out, others are not."""

from __future__ import annotations

import torch

from qwen_megatron.platforms.shims.collectives import unless_alone


def test_only_a_collective_between_a_buffer_and_itself_is_left_out() -> None:
    calls = []
    collective = unless_alone(lambda output, source, group=None: calls.append(group) or "work")
    buffer = torch.arange(4.0)
    assert collective(buffer, buffer[:], group="one") is None
    assert collective(buffer[:2], buffer, group="first of two") == "work"
    assert collective(buffer, buffer[:2], group="gather") == "work"
    assert collective(buffer.clone(), buffer, group="other memory") == "work"
    assert calls == ["first of two", "gather", "other memory"]
