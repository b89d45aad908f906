"""Every small file that the tools read, mutated: the outcome is success or a documented error, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import resource
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.engine import input_list, quarantine, task
from data_tools.pipeline import report, single_stage
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.quality.calibration import Calibration
from data_tools.quality.features import FEWEST_BITS, FeatureConfig
from data_tools.quality.model import QualityModel
from qwen_megatron.checkpoint import manifest, storage, unpickler
from qwen_megatron.checkpoint.state import CheckpointState, ModelState, config_sections, saved_model_config
from qwen_megatron.cli.logits import read_ids
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.convert import hf_config, hf_folder
from qwen_megatron.errors import CheckpointError, ConfigError, DataError
from qwen_megatron.jobs import failure
from qwen_megatron.report.page import page_of
from qwen_megatron.report.run_files import read_run
from qwen_megatron.train.hooks.metrics import drop_rows_after
from qwen_megatron.train.hooks.wandb import run_id
from qwen_megatron.train.state import TrainState
from tests.checkpoint.test_unpickler import good_metadata
from tests.fuzz.mutations import bytes_of, values_of

DOCUMENTED = (CheckpointError, ConfigError, DataError)
GIB = 1 << 30
EXAMPLES = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One file and its reader.

    Attributes:
        make: writes what the reader needs besides; gives the file's valid content.
        name: of the file in its folder.
        read: with the folder.
        dump: from values to bytes; None where the content is no JSON or YAML.
    """

    make: Callable[[Path], Any]
    name: str
    read: Callable[[Path], Any]
    dump: Callable[[Any], bytes] | None = lambda value: json.dumps(value).encode()


def lines(value: Any) -> bytes:
    """A value as JSON Lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in (value if isinstance(value, list) else [value]))


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode()


def small_state() -> dict[str, Any]:
    config = resolve(load_config(None, ["model.preset=tiny"]))
    model = ModelState(
        config=config_sections(config)["model"], optimizer=[{"lr": 0.1, "betas": [0.9, 0.95], "step": 2}]
    )
    state = CheckpointState(
        train_state=TrainState(iteration=2, consumed_samples=8, consumed_tokens=512),
        models={"model": model},
        config=config_sections(config),
        data={"corpus": {"fingerprint": "f", "tokenizer": None, "consumed_samples": 8}},
        environment={"python": "3.11", "packages": {"torch": "2"}},
    )
    return dict(json.loads(state.to_json()))


def make_manifest(folder: Path) -> Any:
    (folder / "state.json").write_bytes(b"{}")
    return {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "files": {"state.json": {"size": 2, "sha256": "0" * 64}},
    }


FAILURE: dict[str, Any] = {
    "error": "ValueError",
    "message": "x",
    "rank": 1,
    "host": "node7",
    "pid": 42,
    "attempt": 0,
    "step": 17,
    "phase": "forward",
    "samples": [64, 67],
    "time": "2026-11-25T00:00:00+00:00",
    "restart_helps": False,
    "lost_peer": False,
}
QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "layer_types": ["full_attention"],
}
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
ROWS = [
    {"step": 0, "eval_loss": 2.5, "perplexity": 12.0},
    {"step": 1, "loss": 2.5, "grad_norm": 1.0, "phase_seconds": {"forward": 1.0, "data": 0.5}, "consumed_tokens": 512},
    {"step": 2, "loss": 2.25, "grad_norm": 0.5, "tokens_per_second": 100.5, "model_flops_utilization": 0.25},
]
STARTS = [
    {"time": "2026-11-25T00:00:00+00:00", "step": step, "world_size": 4, "config": {"parallel": {"x": 2}, "a": {}}}
    for step in (0, 2)
]
PIPELINE = {
    "output": "out",
    "max_bad": "1%",
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


def make_safetensors(folder: Path) -> bytes:
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, folder / "model.safetensors")
    return (folder / "model.safetensors").read_bytes()


def read_safetensors(folder: Path) -> None:
    hf_folder.open_safetensors(folder / "model.safetensors")


def make_ids(folder: Path) -> bytes:
    np.save(folder / "ids.npy", np.array([[1, 2, 3]]))
    return (folder / "ids.npy").read_bytes()


def make_index(folder: Path) -> Any:
    (folder / "model-1.safetensors").touch()
    return {"metadata": {"total_size": 5}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}


def make_list(folder: Path) -> Any:
    return [["a.jsonl.zst", 5, "0"], ["b.jsonl.zst", 6, "1"]]


def make_bad(folder: Path) -> Any:
    return [[0, 5, "not_json", "x"], [0, 6, "empty", "y"]]


def read_bad(folder: Path) -> None:
    one = task.Manifest(folder=str(folder), **{**TASK, "name": "part"})  # type: ignore[arg-type]
    list(quarantine.bad_rows(one))


def page(folder: Path) -> str:
    return page_of(read_run(folder))


def metrics_and_page(folder: Path) -> None:
    page(folder)
    drop_rows_after(folder / "metrics.jsonl", 1)


def run_folder(name: str, content: Any) -> Callable[[Path], Any]:
    """A run's folder, one file of which is mutated."""

    def make(folder: Path) -> Any:
        (folder / "metrics.jsonl").write_bytes(lines(ROWS))
        (folder / "starts.jsonl").write_bytes(lines(STARTS))
        return content

    return make


def valid(content: Any) -> Callable[[Path], Any]:
    return lambda folder: content


TARGETS = {
    "manifest": Target(make=make_manifest, name="manifest.json", read=manifest.read_manifest),
    "state": Target(
        make=lambda folder: small_state(),
        name="state.json",
        read=lambda folder: (CheckpointState.read(folder), saved_model_config(folder)),
    ),
    "latest": Target(make=valid(b"iter_0000001\n"), name="latest", read=manifest.read_latest, dump=None),
    "format": Target(
        make=valid({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}),
        name="metadata.json",
        read=storage.check_format,
    ),
    "metadata": Target(
        make=valid(pickle.dumps(good_metadata(), 4)),
        name=".metadata",
        read=lambda folder: unpickler.read_metadata(folder / ".metadata"),
        dump=None,
    ),
    "failure": Target(
        make=valid(FAILURE),
        name="failure.json",
        read=lambda folder: (failure.refusal(folder, "a"), failure.retire_failure(folder)),
    ),
    "failure page": Target(make=run_folder("failure.json", FAILURE), name="failure.json", read=page),
    "metrics": Target(make=run_folder("metrics.jsonl", ROWS), name="metrics.jsonl", read=metrics_and_page, dump=lines),
    "starts": Target(make=run_folder("starts.jsonl", STARTS), name="starts.jsonl", read=page, dump=lines),
    "completion": Target(
        make=run_folder("completion.json", {"reason": "finished", "step": 2}), name="completion.json", read=page
    ),
    "wandb": Target(make=valid({"id": "abc"}), name="wandb.json", read=lambda folder: run_id(folder / "wandb.json")),
    "configuration": Target(
        make=valid({"model": {"preset": "tiny"}, "data": {"blend": {"a": 0.5, "b": 1}}, "optimizer": {"lr": 0.1}}),
        name="config.yaml",
        read=lambda folder: resolve(load_config(folder / "config.yaml")),
        dump=as_yaml,
    ),
    "qwen2": Target(make=valid(QWEN2), name="config.json", read=lambda f: hf_config.read_config(f / "config.json")),
    "qwen3": Target(
        make=valid(QWEN2 | {"model_type": "qwen3", "head_dim": 24, "attention_bias": False, "rope_scaling": None}),
        name="config.json",
        read=lambda f: hf_config.read_config(f / "config.json"),
    ),
    "index": Target(make=make_index, name=hf_folder.INDEX, read=hf_folder.weight_files),
    "safetensors": Target(make=make_safetensors, name="model.safetensors", read=read_safetensors, dump=None),
    "token ids": Target(make=make_ids, name="ids.npy", read=lambda folder: read_ids(folder / "ids.npy"), dump=None),
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


@pytest.fixture(autouse=True)
def one_gibibyte() -> Iterator[None]:
    """No example may map more than one GiB beyond what the process has: it would end in a MemoryError, which is none
    of the documented ones."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_whatever_is_in_the_file(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    content = target.make(folder)
    path = folder / target.name
    plain = content if target.dump is None else target.dump(content)

    def outcome(mutated: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(mutated)
        with warnings.catch_warnings(), contextlib.suppress(*DOCUMENTED):
            warnings.simplefilter("ignore")
            target.read(folder)

    @settings(
        max_examples=EXAMPLES if target.dump is None else 2 * EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if target.dump is not None and data.draw(st.booleans()):
            outcome(dumped(target.dump, values_of(data.draw, content)))
        else:
            outcome(bytes_of(data.draw, plain))

    # The valid file is read as it is: what refuses everything would pass too.
    path.write_bytes(plain)
    if target.name != "metadata.json":
        target.read(folder)
    check()


def dumped(dump: Callable[[Any], bytes], value: Any) -> bytes:
    """YAML has no half of a surrogate pair."""
    try:
        return dump(value)
    except (UnicodeEncodeError, yaml.YAMLError):
        return b"\xed\xa0\x80"


def test_a_number_of_documents_that_cannot_be(tmp_path: Path) -> None:
    """2**40 in the header, in a file of that size without content, and as the beginning of a document."""
    content = bytearray(make_corpus(tmp_path, "idx"))
    index = CorpusIndex.open(tmp_path / "c")
    place = len(content) - 8 * index.num_documents
    for changed in (content[:26] + struct.pack("<Q", 1 << 40) + content[34:], None):
        if changed is None:
            changed = content[:place] + struct.pack("<q", 1 << 40) + content[place + 8 :]
        (tmp_path / "c.idx").write_bytes(changed)
        with pytest.raises(DataError, match=r"c\.idx"):
            CorpusIndex.open(tmp_path / "c").document_ends()
    shutil.rmtree(tmp_path)
