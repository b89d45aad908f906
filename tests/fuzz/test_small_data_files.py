"""Every small file of corpora, pipelines and their parts, mutated."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.engine import input_list, quarantine, task
from data_tools.pipeline import inspect_run, report, single_stage
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.quality.calibration import Calibration
from data_tools.quality.features import FEWEST_BITS, FeatureConfig
from data_tools.quality.model import QualityModel
from qwen_megatron.errors import DataError
from tests.fuzz.small_file import Target, as_yaml, check_mutations, lines, one_gibibyte, valid

STATISTICS = {
    "by_source": {"web": [2, 30]},
    "by_language": {"en": [2, 30]},
    "by_length": {"5": 2},
    "dropped_by_source": {"not_json": {"web": 1}},
    "dropped_by_language": {"not_json": {"": 1}},
}
STAGE: dict[str, Any] = {
    "name": "read",
    "kind": "read",
    "options": {},
    "parts": 1,
    "records_in": 3,
    "records_out": 2,
    "copied": 0,
    "rejected": {"not_json": 1},
    "statistics": STATISTICS,
    "tokens": {"web": 5000},
    "shares": {"web": 1.0},
    "epochs": {"web": 2.0},
    "matches": {"gsm8k": [1, 2]},
    "examples": {"not_json": [{"id": "a@0", "detail": "", "text": "x"}]},
    "measured": {"rule": {"limit": 0.8, "is_least": True, "counts": [0, 1, 2, 3, 4, 5, 6, 7, 8]}},
}
SUMMARY = {
    "tool_version": "1",
    "pipeline": "p",
    "created": "2026",
    "stages": [STAGE],
    "timings": {"read": {"seconds": 1.5}},
}
TASK = {
    "key": "k",
    "name": "part",
    "operation": "read",
    "tool_version": "1",
    "inputs": [{"path": "a.jsonl", "start": 0}],
    "records_in": 3,
    "records_out": 2,
    "copied": 0,
    "rejected": {"not_json": 1},
    "outputs": {"part.jsonl.zst": {"size_bytes": 3, "sha256": "0"}},
    "statistics": STATISTICS,
    "examples": {},
    "values": {"lines": [3]},
}
PIPELINE = {
    "output": "out",
    "max_bad": "1%",
    "keep_documents": "last",
    "stages": [
        {"kind": "read", "inputs": [{"path": "a.jsonl", "source": "web", "keep": ["quality"]}]},
        {"kind": "exact_dedup"},
        {"kind": "tokenize"},
        {"kind": "mixture", "weights": {"web": 2}, "train_tokens": 1000},
    ],
}


def make_finished(folder: Path) -> Any:
    stage = folder / "stages" / "01-read"
    stage.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps(SUMMARY))
    (stage / "part.manifest.json").write_text(json.dumps(TASK))
    (stage / "part.jsonl.zst").write_bytes(b"abc")
    (stage / "stage.json").write_text(json.dumps({**STAGE, "manifests": ["part.manifest.json"]}))


def finished(name: str, content: Any) -> tuple[Callable[[Path], Any], str]:
    """A finished run, one file of which is mutated."""

    def make(folder: Path) -> Any:
        make_finished(folder)
        return content

    return make, name


def make_corpus(folder: Path, suffix: str) -> Any:
    from tests.support.corpora import write_byte_corpus

    write_byte_corpus(folder / "c", num_documents=5)
    path = folder / f"c.{suffix}"
    return json.loads(path.read_bytes()) if suffix == "json" else path.read_bytes()


def read_index(folder: Path) -> None:
    index = CorpusIndex.open(folder / "c")
    for number in range(min(index.num_documents, 3)):
        index.document(number)
    index.document_ends()
    index.validate()


def make_model(folder: Path) -> Any:
    QualityModel(
        features=FeatureConfig(max_ngram=1, bits=FEWEST_BITS),
        weights=np.zeros(1 << FEWEST_BITS, np.float32),
        intercept=0.5,
        calibration=Calibration(slope=1.0, offset=0.0),
        training={"auc": 0.5},
    ).save(folder)
    return json.loads((folder / "model.json").read_bytes())


def make_list(folder: Path) -> Any:
    return [["a.jsonl.zst", 5, "0"], ["b.jsonl.zst", 6, "1"]]


def make_bad(folder: Path) -> Any:
    return [[0, 5, "not_json", "x"], [0, 6, "empty", "y"]]


def read_bad(folder: Path) -> None:
    one = task.Manifest(folder=str(folder), **{**TASK, "name": "part"})  # type: ignore[arg-type]
    list(quarantine.bad_rows(one))


TARGETS = {
    "sidecar": Target(
        make=lambda f: make_corpus(f, "json"), name="c.json", read=lambda f: Corpus.open(f / "c").tokens(0, 8)
    ),
    "corpus index": Target(make=lambda f: make_corpus(f, "idx"), name="c.idx", read=read_index, dump=None),
    "quality model": Target(make=make_model, name="model.json", read=QualityModel.load),
    "task manifest": Target(
        make=valid(TASK), name="part.manifest.json", read=lambda folder: task.read_manifest(folder, "part")
    ),
    "summary": Target(make=valid(SUMMARY), name="pipeline.json", read=report.write_report),
    "finished run": Target(
        make=finished("pipeline.json", SUMMARY)[0], name="pipeline.json", read=single_stage.finished_parts
    ),
    "finished stage": Target(
        make=finished("", {**STAGE, "manifests": ["part.manifest.json"]})[0],
        name="stages/01-read/stage.json",
        read=single_stage.finished_parts,
    ),
    "finished part": Target(
        make=finished("", TASK)[0], name="stages/01-read/part.manifest.json", read=single_stage.finished_parts
    ),
    "removed documents": Target(
        make=finished("", {"by": "keep_documents: last", "documents": {"part-000000.jsonl.zst": "0"}})[0],
        name="stages/01-read/removal.json",
        read=inspect_run.format_stages,
    ),
    "input list": Target(
        make=make_list,
        name="list.json",
        read=lambda f: input_list.read_input_list(task.FileRange(path=f"{f}/list.json")),
    ),
    "bad records": Target(make=make_bad, name="part.bad.jsonl", read=read_bad, dump=lines),
    "pipeline": Target(
        make=valid(PIPELINE),
        name="pipeline.yaml",
        read=lambda folder: load_pipeline(folder / "pipeline.yaml"),
        dump=as_yaml,
    ),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_whatever_is_in_the_file(target: Target, tmp_path: Path) -> None:
    check_mutations(target, tmp_path / "folder")


def test_a_number_of_documents_that_cannot_be(tmp_path: Path) -> None:
    """2**40 in the header, in a file of that size without content, and as the beginning of a document."""
    content = bytearray(make_corpus(tmp_path, "idx"))
    index = CorpusIndex.open(tmp_path / "c")
    place = len(content) - 8 * index.num_documents
    for changed in (content[:26] + struct.pack("<Q", 1 << 40) + content[34:], None):
        if changed is None:
            changed = content[:place] + struct.pack("<q", 1 << 40) + content[place + 8 :]
        (tmp_path / "c.idx").write_bytes(changed)
        with one_gibibyte(), pytest.raises(DataError, match=r"c\.idx"):
            CorpusIndex.open(tmp_path / "c").document_ends()
    shutil.rmtree(tmp_path)
