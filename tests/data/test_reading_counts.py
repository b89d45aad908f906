"""What a step reads does not grow with the ranks of a replica, and what it holds is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.data import loader as loader_module
from tests.support.corpora import write_zero_corpus
from tests.support.reading import SEQ, Layout, bytes_of_a_step, start_of_a_step

SAMPLES = 16
NEEDED = 4 * (SEQ + 1)
LAYOUTS = [
    Layout(),
    Layout(tensor=8),
    Layout(tensor=2, context=4),
    Layout(tensor=2, pipeline=2),
    Layout(tensor=2, pipeline=4, context=2),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zero_corpus(tmp_path_factory.mktemp("zeros") / "new", 1 << 24)


@pytest.mark.parametrize("mask_documents", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_rank_reads_for_each_stage_that_needs_it(corpus: Path, layout: Layout, mask_documents: bool) -> None:
    in_stage = layout.tensor * layout.context
    totals = bytes_of_a_step(corpus, layout, SAMPLES, mask_documents=mask_documents)
    stages = range(layout.pipeline) if mask_documents else {0, layout.pipeline - 1}
    for number, total in enumerate(totals):
        stage, rank = divmod(number, in_stage)
        if rank == 0 and stage in stages:
            # Two pages of tokens, one for the last label, and their checksums.
            assert SAMPLES * NEEDED < total <= SAMPLES * 3 * (4096 + 4)
        else:
            assert total == 0


def test_checks_of_earlier_versions_read_whole_blocks(tmp_path: Path, corpus: Path) -> None:
    old = write_zero_corpus(tmp_path / "old", 1 << 24, block_bytes=65536)
    (was,) = bytes_of_a_step(old, Layout(), SAMPLES)
    (now,) = bytes_of_a_step(corpus, Layout(), SAMPLES)
    assert was > 5 * now


def test_a_step_is_read_ahead_and_the_others_hold_one_batch(corpus: Path) -> None:
    measured = start_of_a_step(corpus, 32, 0.0, next, read_ahead=32)
    # The one that is worked on, and a step's.
    assert measured.reader_bytes == 33 * measured.other_bytes
    assert measured.other_bytes == 28 * SEQ


def test_reading_ahead_is_bounded_in_bytes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "READ_AHEAD_BYTES", 10 * 28 * SEQ)
    measured = start_of_a_step(corpus, 64, 0.0, next, read_ahead=64)
    assert measured.reader_bytes == 11 * measured.other_bytes


def test_one_batch_is_read_ahead_however_large_it_is(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "READ_AHEAD_BYTES", 1)
    measured = start_of_a_step(corpus, 32, 0.0, next, read_ahead=32)
    assert measured.reader_bytes == 2 * measured.other_bytes
