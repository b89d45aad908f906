"""Pickled weights become safetensors by an explicit command, and nothing in a pickle is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_megatron.cli.main import main
from qwen_megatron.convert.from_hf import from_hf, write_weights
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.pickled_folder import to_safetensors
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.errors import CheckpointError
from tests.convert.random_weights import SHAPES, TINY, RandomWeights, formats_of
from tests.convert.round_trip import assert_same_tensors, load_folder

MODELS = {"qwen1": TINY, "qwen2-tied": SHAPES["tied"], "qwen3": SHAPES["qwen3"]}


def exported(name: str, folder: Path) -> Path:
    """A model as safetensors."""
    model = MODELS[name]
    write_weights(RandomWeights(model, torch.bfloat16), folder / "checkpoint")
    hf_format = next(form for form in formats_of(model) if form.value == name.partition("-")[0])
    to_hf(folder / "checkpoint", folder / "hf", hf_format=hf_format)
    return folder / "hf"


def pickled(hf: Path, folder: Path, *, num_files: int = 1) -> Path:
    """The same folder with pickles, and code that must not be copied."""
    folder.mkdir()
    tensors = load_folder(hf)
    for path in hf.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    (folder / "modeling_qwen.py").write_text("raise SystemExit")
    names = sorted(tensors)
    parts = [names[start::num_files] for start in range(num_files)]
    files = [f"pytorch_model-{i}.bin" for i in range(num_files)] if num_files > 1 else ["pytorch_model.bin"]
    for file, part in zip(files, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, folder / file)
    if num_files > 1:
        index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_tensors_are_the_same(name: str, num_files: int, tmp_path: Path) -> None:
    hf = exported(name, tmp_path)
    folder, out = pickled(hf, tmp_path / "bin", num_files=num_files), tmp_path / "out"
    with pytest.raises(CheckpointError, match=f"make safetensors of the folder first: .* to-safetensors {folder} OUT"):
        from_hf(folder, tmp_path / "refused")
    assert main(["convert", "to-safetensors", str(folder), str(out)]) == 0
    assert_same_tensors(out, hf)
    assert HfFolder(out).model == HfFolder(hf).model
    assert not list(out.glob("*.py")) + list(out.glob("*.bin*"))
    assert (out / "config.json").read_bytes() == (hf / "config.json").read_bytes()
    assert main(["convert", "to-safetensors", str(folder), str(out)]) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder of pickles; tests change a copy."""
    directory = tmp_path_factory.mktemp("pickled")
    return pickled(exported("qwen3", directory), directory / "bin", num_files=2)


class Payload:
    """Makes a file when a plain unpickler reads it."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def change_pickle(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(change(content) or content, path)


CHANGES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "payload": (
        lambda folder, canary: change_pickle(
            folder / "pytorch_model-1.bin", lambda content: content.update(x=Payload(canary))
        ),
        "is not a file of plain tensors",
    ),
    "no pickle": (lambda folder, _: (folder / "pytorch_model-0.bin").write_bytes(b"x" * 99), "of plain tensors"),
    "a list": (lambda folder, _: torch.save([torch.zeros(1)], folder / "pytorch_model-0.bin"), "holds a list"),
    "a number": (
        lambda folder, _: change_pickle(folder / "pytorch_model-0.bin", lambda content: content.update(x=3)),
        "'x' is no plain tensor",
    ),
    "integers": (
        lambda folder, _: change_pickle(
            folder / "pytorch_model-0.bin", lambda content: content.update(x=torch.zeros(1, dtype=torch.int64))
        ),
        "x has dtype torch.int64",
    ),
    "extra": (
        lambda folder, _: change_pickle(
            folder / "pytorch_model-0.bin", lambda content: content.update(x=torch.zeros(1))
        ),
        "x of shape [1] is extra",
    ),
    "elsewhere": (
        lambda folder, _: (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {"a": "../elsewhere.bin"}})
        ),
        "only plain names of files in the folder are allowed",
    ),
    "a link out": (
        lambda folder, canary: (
            (folder / "pytorch_model-0.bin").rename(canary.parent / "moved.bin"),
            (folder / "pytorch_model-0.bin").symlink_to(canary.parent / "moved.bin"),
        ),
        "outside of the folder",
    ),
    "a linked card": (
        lambda folder, canary: (
            (canary.parent / "secret").write_text("secret"),
            (folder / "README.md").unlink(),
            (folder / "README.md").symlink_to(canary.parent / "secret"),
        ),
        "outside of the folder",
    ),
    "another model": (
        lambda folder, _: (folder / "config.json").write_text('{"model_type": "llama"}'),
        'model_type="llama"',
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_plain_tensors_of_the_model_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    copy, canary = Path(shutil.copytree(folder, tmp_path / "bin")), tmp_path / "beside" / "canary"
    change, words = CHANGES[name]
    change(copy, canary)
    with pytest.raises(CheckpointError) as caught:
        to_safetensors(copy, tmp_path / "out")
    assert words in str(caught.value)
    assert not canary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "bin"]
