"""One rank reads, the others get the same micro-batches; what the reader cannot read, they are told."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qwen_megatron.data.batch import Batch, blank_batch, make_batch
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.pretraining.dataset import open_dataset
from qwen_megatron.data.protocol import Dataset, Needs
from qwen_megatron.data.sharing import ALL, batch_of, layout_of, parse_layout, size_of, tensors_of
from qwen_megatron.errors import DataError, ReaderDataError, ReaderFailed
from qwen_megatron.parallel.groups import Groups, on_the_host
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

LENGTH = 16
END = 5


class CountedDataset(Dataset):
    """Tokens from the sample's number; counts the rows it was asked for, and fails at one of them.

    Every third sample brings another set of extra fields.
    """

    def __init__(self, *, mask_documents: bool = False, fail_at: int | None = None, error: type[Exception] = DataError):
        self.seq_length = LENGTH
        self.eval_ids: Sequence[int] = range(1000, 1007)
        self.mask_documents = mask_documents
        self.fail_at, self.error = fail_at, error
        self.rows = 0

    def train_id(self, number: int) -> int:
        return number

    def batch(self, ids: Sequence[int | None]) -> Batch:
        self.rows += len(ids)
        if self.fail_at is not None and self.fail_at in ids:
            raise self.error("corpus.bin: block 7 is damaged \udcff")
        rows = [None if number is None else (torch.arange(LENGTH + 1) * number % 11).numpy() for number in ids]
        batch = make_batch(rows, ids, LENGTH, END, mask_documents=self.mask_documents)
        if ids[0] is None or ids[0] % 3:
            return batch
        flags = torch.tensor([number is None for number in ids])
        return dataclasses.replace(batch, extras={"odd": flags, "weights": torch.full((len(ids), 3), 0.1).bfloat16()})

    def batch_without_tokens(self, ids: Sequence[int | None]) -> Batch | None:
        return None if self.mask_documents else blank_batch(ids, LENGTH)

    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        return {}


def needs_of(stage: int, pipeline: int) -> Needs:
    return Needs(tokens=stage == 0, targets=stage == pipeline - 1)


def loader_of(dataset: Dataset, groups: Groups | None = None, workers: int = 2) -> Loader:
    if groups is None:
        return Loader(dataset, micro_batch_size=2, data_parallel_rank=0, data_parallel_size=1, num_workers=0)
    return Loader(
        dataset,
        micro_batch_size=2,
        data_parallel_rank=groups.dp.rank(),
        data_parallel_size=groups.dp.size(),
        num_workers=workers,
        group=groups.readers,
        needs=needs_of(groups.pp.rank(), groups.pp.size()),
    )


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.samples == other.samples
    mine, theirs = tensors_of(one), tensors_of(other)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(tensor, theirs[name])


def read_job(sizes: tuple[int, int, int], mask_documents: bool, workers: int) -> tuple[int, int, list[Batch]]:
    """This rank's stage, the rows it read, and its batches of six micro-batches and an evaluation in between."""
    with groups_of(*sizes) as groups:
        dataset = CountedDataset(mask_documents=mask_documents)
        loader = loader_of(dataset, groups, workers)
        training = loader.training(4)
        batches = [*islice(training, 3), *loader.evaluation(), *islice(training, 3)]
        loader.close()
        return groups.pp.rank(), dataset.rows, batches


def expected_batches(mask_documents: bool) -> list[Batch]:
    loader = loader_of(CountedDataset(mask_documents=mask_documents))
    training = loader.training(4)
    return [*islice(training, 3), *loader.evaluation(), *islice(training, 3)]


@pytest.mark.parametrize("mask_documents", [False, True])
@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 1, 2), (2, 1, 2), (2, 2, 1), (1, 4, 1)], ids=str)
def test_every_rank_gets_what_one_reads(ranks: RankPool, sizes: tuple[int, int, int], mask_documents: bool) -> None:
    tensor, pipeline, context = sizes
    results = ranks.run(tensor * pipeline * context, read_job, sizes=sizes, mask_documents=mask_documents, workers=0)
    expected = expected_batches(mask_documents)
    rows = dict.fromkeys(range(pipeline), 0)
    for stage, read, batches in results:
        rows[stage] += read
        assert [batch.samples for batch in batches] == [batch.samples for batch in expected]
        for one, other in zip(batches, expected, strict=True):
            assert_equal(one, other.keeping(needs_of(stage, pipeline)))
    # Six micro-batches of two, and seven held-out samples in four: each read once a stage that needs it.
    assert rows == {stage: 20 if mask_documents or stage in (0, pipeline - 1) else 0 for stage in range(pipeline)}


def test_reading_ahead_changes_nothing_for_the_others(ranks: RankPool) -> None:
    (_, _, mine), (_, rows, theirs) = ranks.run(2, read_job, sizes=(2, 1, 1), mask_documents=True, workers=2)
    assert rows == 0
    for one, other, expected in zip(mine, theirs, expected_batches(True), strict=True):
        assert_equal(one, expected)
        assert_equal(other, expected)


def failing_job(error: type[Exception], workers: int) -> tuple[int, str, str, list[str]]:
    """How many batches came, the error that came then, and its classes."""
    with groups_of(tensor_size=2) as groups:
        loader = loader_of(CountedDataset(fail_at=9, error=error), groups, workers)
        came = 0
        try:
            for _ in loader.training(0):
                came += 1
        except Exception as caught:  # noqa: BLE001 - looked at by the test
            return came, type(caught).__name__, str(caught), [kind.__name__ for kind in type(caught).__mro__]
        finally:
            loader.close()
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [DataError, ValueError])
def test_a_readers_error_is_raised_where_it_is_waited_for(
    ranks: RankPool, error: type[Exception], workers: int
) -> None:
    reader, other = ranks.run(2, failing_job, error=error, workers=workers)
    assert reader[:3] == (4, error.__name__, "corpus.bin: block 7 is damaged \udcff")
    assert other[0] == 4
    assert "corpus.bin: block 7 is damaged \udcff" in other[2]
    assert "rank 0" in other[2]
    assert ReaderFailed.__name__ in other[3]
    assert (DataError.__name__ in other[3]) == (error is DataError)
    assert other[1] == (ReaderDataError if error is DataError else ReaderFailed).__name__


def damaged_job(prefix: str) -> str:
    with groups_of(tensor_size=2) as groups:
        dataset = open_dataset([prefix], seq_length=64, seed=1, eval_samples=4, vocab_size=257)
        # It is cut only when both have opened it.
        dist.barrier(group=groups.tp)
        if groups.tp.rank() == 0:
            os.truncate(f"{prefix}.bin", 100)
        loader = loader_of(dataset, groups)
        try:
            next(loader.training(0))
        except DataError as error:
            return str(error)
        finally:
            loader.close()
    return "nothing was raised"


def test_a_file_cut_while_open_is_named_on_all_ranks(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "cut"
    for suffix in ("bin", "idx", "json", "crc"):
        Path(f"{prefix}.{suffix}").write_bytes(Path(f"{byte_corpus}.{suffix}").read_bytes())
    for told in ranks.run(2, damaged_job, prefix=str(prefix)):
        assert "cut.bin" in told


def test_a_batch_survives_its_tensors() -> None:
    for number in (None, 3, 4):
        batch = CountedDataset(mask_documents=True).batch([number, 7])
        blank = blank_batch(batch.samples, LENGTH)
        assert_equal(batch_of(blank, tensors_of(batch)), batch)
        for needs in (Needs(tokens=False), Needs(targets=False), Needs(tokens=False, targets=False)):
            assert_equal(batch_of(blank, tensors_of(batch, needs)), batch.keeping(needs))


@pytest.mark.parametrize(("needs", "most"), [(ALL, 36), (Needs(targets=False), 24), (Needs(tokens=False), 20)])
def test_a_stage_is_sent_what_it_looks_at(needs: Needs, most: int) -> None:
    batch = CountedDataset(mask_documents=True).batch([1, 7])
    tensors = tensors_of(batch, needs)
    assert sum(tensor.nbytes for tensor in tensors.values()) == most * 2 * LENGTH
    kept = batch.keeping(needs)
    looked_at = {"tokens_bs": needs.tokens, "labels_bs": needs.targets, "loss_mask_bs": needs.targets}
    for name, needed in looked_at.items():
        assert (getattr(kept, name) is getattr(batch, name)) == needed
        assert needed or getattr(kept, name).untyped_storage().nbytes() <= 8


def apart_job() -> list[list[int]]:
    """Batches over a group of the host beside one that pretends to send tensors of GPUs only."""
    with groups_of(tensor_size=2) as groups:
        pretended = dist.get_backend
        dist.get_backend = lambda group=None: "nccl" if group is groups.collection.tp_cp else pretended(group)  # type: ignore[assignment]
        try:
            host = on_the_host(groups.collection.tp_cp, 30.0)
            assert host is on_the_host(groups.collection.tp_cp, 30.0)
        finally:
            dist.get_backend = pretended
        assert host is not groups.collection.tp_cp
        assert pretended(host) == "gloo"
        assert dist.get_process_group_ranks(host) == dist.get_process_group_ranks(groups.collection.tp_cp)
        loader = loader_of(CountedDataset(), dataclasses.replace(groups, readers=host), workers=0)
        return [batch.tokens_bs.tolist() for batch in islice(loader.training(0), 2)]


def test_micro_batches_of_gpus_are_shared_on_the_host(ranks: RankPool) -> None:
    mine, theirs = ranks.run(2, apart_job)
    assert mine == theirs
    assert mine[0] != mine[1]


def test_tensors_lie_apart_where_any_type_may_begin() -> None:
    layout = layout_of([("a", "bool", (3,)), ("b", "int64", (2, 2)), ("c", "float32", ())])
    assert [(slot.start, slot.stop) for slot in layout] == [(0, 3), (16, 48), (48, 52)]
    assert size_of(layout) == 52
    assert size_of(()) == 0


def strange_layouts() -> Iterator[Any]:
    good = {"name": "tokens_bs", "dtype": "int64", "shape": [2, 2]}
    yield from ({}, [1], [good | {"dtype": "object"}], [good | {"shape": [-1]}], [good | {"shape": [1 << 40]}])
    yield [good | {"name": 1}]


@pytest.mark.parametrize("value", strange_layouts())
def test_a_strangers_layout_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_layout(value)
