"""Runs that are evaluated on corpora they do not train on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus.import_corpus import import_corpus
from qwen_megatron.jobs.pretrain import perplexity
from qwen_megatron.report.numbers import numbers
from qwen_megatron.report.run_files import read_run
from tests.support.corpora import END_OF_BYTES
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks, rows

TWO_STEPS = ("training.exit_iter=2", "training.eval_interval=2")


def test_perplexity_beyond_all_floats_is_infinite() -> None:
    assert (perplexity(2.0), perplexity(800.0)) == (math.exp(2.0), math.inf)


def write_words(prefix: Path, word: bytes) -> Path:
    """A corpus of one word over and over."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    tokens = np.append(np.frombuffer(word * 200, dtype=np.uint8).astype(np.int32), END_OF_BYTES)
    builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    import_corpus(prefix, end_of_document=END_OF_BYTES)
    return prefix


def test_named_corpora_are_evaluated_and_nothing_else_changes(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path
) -> None:
    one, two = write_words(tmp_path / "one", b"one "), write_words(tmp_path / "two", b"another ")
    held_out = (f"data.eval_blend={{words: [{one}, {two}], two: {two}}}", "data.eval_blend_samples=7")
    plain = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "plain", *TWO_STEPS)
    named = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "named", *TWO_STEPS, *held_out)
    assert [row["loss_hex"] for row in named.values()] == [row["loss_hex"] for row in plain.values()]
    measured = {
        (row["step"], row.get("corpus")): row["eval_loss"] for row in rows(tmp_path / "named") if "eval_loss" in row
    }
    assert list(measured) == [(step, corpus) for step in (0, 2) for corpus in (None, "words", "two")]
    own = {row["step"]: row["eval_loss"] for row in rows(tmp_path / "plain") if "eval_loss" in row}
    assert own == {step: loss for (step, corpus), loss in measured.items() if corpus is None}
    assert len(set(measured.values())) == 6
    # On two replicas the seven samples are divided unevenly.
    pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "halves", *TWO_STEPS, *held_out)
    halves = {
        (row["step"], row.get("corpus")): row["eval_loss"] for row in rows(tmp_path / "halves") if "eval_loss" in row
    }
    assert halves == pytest.approx(measured, rel=1e-5)
    found = numbers(read_run(tmp_path / "named"))
    assert found["held_out_loss"]["words"] == measured[2, "words"]
    # Two steps of four samples of 64 tokens.
    assert found["corpora"][str(byte_corpus)]["tokens"] == 2 * 4 * 64
