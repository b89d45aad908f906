"""Small objects between ranks: JSON of a bounded length, checked on arrival, the same error everywhere."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from qwen_megatron.checkpoint.manifest import FileEntry
from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel import objects
from qwen_megatron.parallel.objects import TEXT_OR_NONE, all_gather, broadcast, decode, dict_of, list_of, of_type
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of


def exchange_job() -> tuple[list[Any], list[Any], str | None, list[str | None]]:
    with groups_of():
        rank = dist.get_rank()
        sums = all_gather({f"weight {i}": -(2**62) + i for i in range(rank)}, dict_of(of_type(int)))
        texts = all_gather("\udc80ß\n" * rank or None, TEXT_OR_NONE)
        from_two = broadcast(f"of {rank}", TEXT_OR_NONE, source=2)
        entries = all_gather({"a": [rank, "0" * 64]}, dict_of(FileEntry.parse))
        return sums, [entry["a"].size for entry in entries], from_two, texts


def test_every_rank_has_the_values_of_all(ranks: RankPool) -> None:
    sums = [{f"weight {i}": -(2**62) + i for i in range(rank)} for rank in range(4)]
    texts = [None, *("\udc80ß\n" * rank for rank in range(1, 4))]
    assert ranks.run(4, exchange_job) == [(sums, list(range(4)), "of 2", texts)] * 4


def refused_job(value: Any, limit: int) -> str:
    """Rank 1 sends something else; what each rank says of it."""
    with groups_of(), mock.patch.object(objects, "MAX_BYTES", limit):
        with pytest.raises(PlatformError) as caught:
            all_gather(value if dist.get_rank() == 1 else "good", of_type(str))
        # Nobody has stopped in the middle of an exchange.
        assert all_gather(None, TEXT_OR_NONE) == [None] * 3
        return str(caught.value)


@pytest.mark.parametrize(
    ("value", "limit", "message"),
    [
        (17, 100, "int instead of str"),
        ("x" * 200, 100, "202 bytes, allowed are 1 to 100"),
        (["a"], 100, "list instead"),
    ],
)
def test_what_no_rank_sends_is_refused_by_all(ranks: RankPool, value: Any, limit: int, message: str) -> None:
    told = ranks.run(3, refused_job, value=value, limit=limit)
    assert len(set(told)) == 1
    assert told[0].startswith("rank 1 sent what no rank of this program sends: ")
    assert message in told[0]


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x95",  # How a pickle begins.
        b"\xff",
        b"",
        b"{",
        b"NaN",
        b"[" * 100_000,
        b'{"a": true}',
        b'{"a": 1.0}',
        b"[1]",
    ],
    ids=["pickle", "no utf-8", "empty", "cut", "nan", "deep", "bool for int", "float for int", "list"],
)
def test_bytes_that_are_no_object_of_ours(content: bytes) -> None:
    with pytest.raises(PlatformError, match="rank 5 sent what no rank of this program sends"):
        decode(content, dict_of(of_type(int)), 5)


@pytest.mark.parametrize("pair", [[1], [True, "0" * 64], [-1, "0" * 64], [1, "x" * 64], ["1", "0" * 64], 3, "ab", None])
def test_a_file_entry_is_size_and_hash(pair: Any) -> None:
    with pytest.raises(PlatformError, match="rank 0 sent"):
        decode(json.dumps(pair).encode(), FileEntry.parse, 0)


def test_lists_have_their_length() -> None:
    parse = list_of(of_type(bool), length=2)
    assert decode(b"[true, false]", parse, 0) == [True, False]
    with pytest.raises(PlatformError, match="3 items instead of 2"):
        decode(b"[true, false, true]", parse, 0)


def test_without_a_job_there_is_one_value() -> None:
    assert all_gather("alone", TEXT_OR_NONE) == ["alone"]
    assert broadcast(3, of_type(int)) == 3
