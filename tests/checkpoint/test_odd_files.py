"""Small files of a run that are not what a save writes: the newest good checkpoint is found all the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.checkpoint.load import find_newest, verify_checkpoint
from qwen_megatron.checkpoint.manifest import publish, read_latest, read_manifest
from qwen_megatron.checkpoint.state import CheckpointState
from qwen_megatron.errors import CheckpointError
from qwen_megatron.jobs.failure import FAILURE, refusal, retire_failure
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def trained_run(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, saved after steps 1 and 2."""
    directory = tmp_path_factory.mktemp("odd")
    pretrain_on_ranks(ranks, 1, byte_corpus, directory, "training.exit_iter=2", "checkpoint.save_interval=1")
    return directory


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def set_manifest(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's values."""
    content = json.loads((checkpoint / "manifest.json").read_text())
    change(content)
    (checkpoint / "manifest.json").write_text(json.dumps(content))


def replace_listed(checkpoint: Path, name: str, content: bytes) -> None:
    """Replaces a file and enters the new one in the manifest, as somebody who means harm would."""
    (checkpoint / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    set_manifest(checkpoint, lambda manifest: manifest["files"].update({name: entry}))


def set_state(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the small state's values."""
    content = json.loads((checkpoint / "state.json").read_text())
    change(content)
    replace_listed(checkpoint, "state.json", json.dumps(content).encode())


def size_of(value: object) -> Callable[[Path], None]:
    """A shard's size in the manifest."""
    return lambda checkpoint: set_manifest(
        checkpoint, lambda content: content["files"]["state.json"].update(size=value)
    )


def state(name: str, value: object) -> Callable[[Path], None]:
    """A member of the small state."""
    return lambda checkpoint: set_state(checkpoint, lambda content: content.update({name: value}))


def model(name: str, value: object) -> Callable[[Path], None]:
    """A member of the model's small state."""
    return lambda checkpoint: set_state(checkpoint, lambda content: content["models"]["model"].update({name: value}))


def make_pipe(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")


def list_a_pipe(checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "pipe")
    set_manifest(checkpoint, lambda content: content["files"].update(pipe={"size": 0, "sha256": "0"}))


def list_parents(checkpoint: Path) -> None:
    size = checkpoint.parent.stat().st_size
    set_manifest(checkpoint, lambda content: content["files"].update({"..": {"size": size, "sha256": "0"}}))


ODD: dict[str, Callable[[Path], Any]] = {
    "manifest nested": lambda checkpoint: (checkpoint / "manifest.json").write_bytes(DEEP),
    "manifest a list": lambda checkpoint: (checkpoint / "manifest.json").write_bytes(b"[1]"),
    "manifest without files": lambda checkpoint: set_manifest(checkpoint, lambda content: content.pop("files")),
    "manifest of no files": lambda checkpoint: set_manifest(checkpoint, lambda content: content["files"].clear()),
    "manifest a pipe": make_pipe,
    "pipe listed": list_a_pipe,
    "parents listed": list_parents,
    "size infinite": size_of(float("inf")),
    "size null": size_of(None),
    "size beyond a float": size_of(10**400),
    "state nested": lambda checkpoint: replace_listed(checkpoint, "state.json", DEEP),
    "state null": lambda checkpoint: replace_listed(checkpoint, "state.json", b"null"),
    "config null": state("config", None),
    "config of lists": state("config", {"model": [], "data": []}),
    "no models": state("models", {}),
    "models a list": state("models", [{}]),
    "a model's name a path": state("models", {"../model": {"config": {}}}),
    "another version": state("version", 3),
    "groups without steps": model("optimizer", [{}]),
    "step infinite": model("optimizer", [{"step": float("inf")}]),
    "head of another kind": model("head", "classifier"),
    "architecture null": model("config", None),
    "counters negative": state("train_state", {"iteration": -1, "consumed_samples": 0, "consumed_tokens": 0}),
    "counters true": state("train_state", {"iteration": True, "consumed_samples": 0, "consumed_tokens": 0}),
    "data null": state("data", None),
    "data without fingerprints": state("data", {"x": {}}),
    "format nested": lambda checkpoint: replace_listed(checkpoint, "metadata.json", DEEP),
    "format of others": lambda checkpoint: replace_listed(checkpoint, "metadata.json", b'{"sharded_backend": "zarr"}'),
    "format null": lambda checkpoint: replace_listed(checkpoint, "metadata.json", b"null"),
}


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_an_odd_checkpoint_is_passed_over(damage: Callable[[Path], Any], run_copy: Path) -> None:
    damage(run_copy / "iter_0000002")
    assert find_newest(run_copy) == run_copy / "iter_0000001"
    with pytest.raises(CheckpointError, match="iter_0000002"):
        verify_checkpoint(run_copy / "iter_0000002")


@pytest.mark.parametrize("form", ["folder", "nested", "huge", "pipe", "not text", "null character"])
def test_latest_is_a_hint(form: str, run_copy: Path) -> None:
    path = run_copy / "latest"
    path.unlink()
    match form:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":
            with path.open("wb") as stream:
                stream.truncate(1 << 40)
        case _:
            path.write_bytes({"nested": DEEP, "not text": b"\xff\xfe", "null character": b"iter\0"}[form])
    assert find_newest(run_copy) == run_copy / "iter_0000002"


def test_a_folder_in_the_place_of_latest_stops_no_save(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / ".partial").mkdir()
    publish(tmp_path / ".partial", tmp_path / "iter_0000001")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", "latest"]
    assert read_latest(tmp_path) is None


def test_a_run_goes_on_past_odd_files(ranks: RankPool, byte_corpus: Path, run_copy: Path) -> None:
    """All at once, in a job: the checkpoint before, its bits, and a save at the end."""
    state("config", None)(run_copy / "iter_0000002")
    (run_copy / "latest").unlink()
    (run_copy / "latest").mkdir()
    (run_copy / FAILURE).write_bytes(DEEP)
    with (run_copy / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": {}}\n\xff\n' + DEEP + b'\n{"step": 1e400}\n[]\n')
    steps = pretrain_on_ranks(ranks, 1, byte_corpus, run_copy, "training.exit_iter=3")
    assert sorted(steps) == [1, 2, 3]
    read_manifest(run_copy / "iter_0000003")
    assert CheckpointState.read(run_copy / "iter_0000003").train_state.iteration == 3


@pytest.mark.parametrize("content", [DEEP, b'{"rank": 1e400}', b"\xff", b"[]", b'{"samples": "abc"}'])
def test_an_odd_record_of_a_failure_stops_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FAILURE).write_bytes(content)
    assert refusal(tmp_path, "a") is None
    retire_failure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_record_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FAILURE).mkdir()
    assert refusal(tmp_path, "a") is None
    retire_failure(tmp_path)
