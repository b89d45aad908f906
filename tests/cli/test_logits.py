"""`qwen-megatron logits` from the command line to the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_megatron.cli.main import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("logits") / "checkpoint"
    assert main(["convert", "from-hf", str(FIXTURE), str(out)]) == 0
    return out


def run(source: Path, ids: Path, out: Path) -> int:
    return main(["logits", str(source), "--input-ids", str(ids), "--output", str(out)])


@pytest.mark.parametrize("kind", ["checkpoint", "hf"])
@pytest.mark.parametrize("length", [1, 25, 96])
def test_logits_are_those_of_the_released_code(kind: str, length: int, checkpoint: Path, tmp_path: Path) -> None:
    with np.load(FIXTURE / "golden.npz") as golden:
        ids, expected = golden[f"ids_{length}"], golden[f"logits_ntk1_logn1_{length}"]
    np.save(tmp_path / "ids.npy", ids)
    source = FIXTURE if kind == "hf" else checkpoint
    assert run(source, tmp_path / "ids.npy", tmp_path / "logits.npy") == 0
    actual = np.load(tmp_path / "logits.npy", allow_pickle=False)
    assert (actual.dtype, actual.shape) == (np.float32, (2, length, 160))
    assert np.abs(actual - expected).max() < 5e-5


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "<i8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Path and part of the message, by what is wrong."""
    path = {name: folder / f"{name}.npy" for name in ("int32", "float", "one-axis", "empty", "high", "low", "pickle")}
    np.save(path["int32"], np.zeros((1, 2), dtype=np.int32))
    np.save(path["float"], np.zeros((1, 2)))
    np.save(path["one-axis"], np.zeros(3, dtype=np.int64))
    np.save(path["empty"], np.zeros((2, 0), dtype=np.int64))
    np.save(path["high"], np.array([[0, 159], [160, 3]]))
    np.save(path["low"], np.array([[5, -1]]))
    np.save(path["pickle"], np.array([[Payload(folder / "canary")]], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", ids=np.zeros((1, 2), dtype=np.int64))
    (folder / "huge.npy").write_bytes(npy_header((2**40, 2**20)) + bytes(64))
    (folder / "text.npy").write_text("1 2 3")
    (folder / "nothing.npy").write_bytes(b"")
    return {
        "int32": (path["int32"], "has dtype int32; must be int64, use ids.astype('int64')"),
        "float": (path["float"], "has dtype float64; must be int64"),
        "one-axis": (path["one-axis"], "has shape [3]; must be [batch, seq]"),
        "empty": (path["empty"], "has shape [2, 0]; must be [batch, seq] with at least one token"),
        "high": (path["high"], "id 160 at [1, 0] is not in the model's vocabulary (0 to 159)"),
        "low": (path["low"], "id -1 at [0, 1] is not in the model's vocabulary (0 to 159)"),
        "pickle": (path["pickle"], "is not a readable .npy file of numbers"),
        "archive": (folder / "archive.npz", "is an archive of arrays; save one array with numpy.save"),
        "huge": (folder / "huge.npy", "is not a readable .npy file of numbers"),
        "text": (folder / "text.npy", "is not a readable .npy file of numbers"),
        "nothing": (folder / "nothing.npy", "is not a readable .npy file of numbers"),
        "missing": (folder / "missing.npy", "No such file or directory"),
    }


def test_bad_ids_are_refused_by_name(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for problem, (path, words) in bad_files(tmp_path).items():
        assert run(checkpoint, path, tmp_path / "logits" / "out.npy") in (1, 2), problem
        (tmp_path / "logits").mkdir(exist_ok=True)
        assert run(checkpoint, path, tmp_path / "logits" / "out.npy") == 1, problem
        message = capsys.readouterr().err
        assert f"qwen-megatron: error: {path}: " in message, problem
        assert words in message, problem
    assert list((tmp_path / "logits").iterdir()) == []
    assert not (tmp_path / "canary").exists()


def test_the_output_has_to_be_a_file_in_a_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), dtype=np.int64))
    assert run(checkpoint, tmp_path / "ids.npy", tmp_path / "no" / "out.npy") == 2
    assert f"{tmp_path / 'no'} is not a folder; make it first" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "ids.npy", tmp_path) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_a_source_that_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), dtype=np.int64))
    assert run(tmp_path, tmp_path / "ids.npy", tmp_path / "out.npy") == 1
    assert f"{tmp_path / 'state.json'}: missing; the folder is not a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()
