"""Damaged, incomplete and hostile Hugging Face folders are refused, naming file, tensor, expected and actual."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_megatron.convert import hf_folder
from qwen_megatron.convert.from_hf import from_hf
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.name_map import Part, entries
from qwen_megatron.errors import CheckpointError

FIXTURES = Path(__file__).parents[1] / "fixtures"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(qwen1_mini: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(qwen1_mini, tmp_path / "hf", ignore=shutil.ignore_patterns("golden*")))


def refused(folder: Path) -> str:
    """The message with which the folder is refused; nothing is written."""
    out = folder.parent / "out"
    with pytest.raises(CheckpointError) as caught:
        from_hf(folder, out)
    assert sorted(path.name for path in folder.parent.iterdir() if "out" in path.name) == []
    return str(caught.value)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    name = "transformer.h.1.mlp.w1.weight"
    file = json.loads((folder / INDEX).read_text())["weight_map"][name]
    change_tensors(folder / file, lambda tensors: tensors.pop(name))
    assert f"{folder / INDEX}: {name} should be in {file}, which does not hold it" in refused(folder)
    change_json(folder / INDEX, lambda index: index["weight_map"].pop(name))
    assert f"{folder}: {name} is missing; expected shape [132, 48]" in refused(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    name = "transformer.h.0.attn.q_norm.weight"
    change_tensors(folder / FIRST, lambda tensors: tensors.update({name: torch.zeros(7)}))
    assert f"{folder / FIRST}: {name} is not in {INDEX}" in refused(folder)
    change_json(folder / INDEX, lambda index: index["weight_map"].update({name: FIRST}))
    assert f"{folder / FIRST}: {name} of shape [7] is extra" in refused(folder)


def test_a_wrong_shape_is_named_with_the_right_one(folder: Path) -> None:
    name = "transformer.wte.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    change_tensors(file, lambda tensors: tensors.update({name: torch.zeros(161, 48)}))
    assert f"{file}: {name} has shape [161, 48]; expected [160, 48]" in refused(folder)


def test_many_wrong_tensors_are_counted(folder: Path) -> None:
    change_json(folder / "config.json", lambda config: config.update(hidden_size=96, kv_channels=32))
    message = refused(folder)
    assert message.count("\n") == 8
    assert message.endswith("and 19 more")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype: torch.dtype, folder: Path) -> None:
    name = "transformer.ln_f.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    change_tensors(file, lambda tensors: tensors.update({name: torch.ones(48).to(dtype)}))
    assert f"{file}: {name} has dtype" in refused(folder)
    assert "expected one of BF16, F16, F32" in refused(folder)


def test_one_weight_has_one_dtype_in_all_layers(folder: Path) -> None:
    name = "transformer.h.2.ln_1.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    change_tensors(file, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    assert f"{name} has dtype BF16; expected F32, as transformer.h.0.ln_1.weight has" in refused(folder)


def test_different_weights_may_have_different_dtypes(folder: Path) -> None:
    for file in (FIRST, SECOND):
        change_tensors(
            folder / file,
            lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "ln_" not in n}),
        )
    opened = HfFolder(folder)
    assert {
        entry.key.endswith("norm_weight") or "layernorm" in entry.key: opened.dtype(entry)
        for entry in entries(opened.model)
    } == {True: torch.float32, False: torch.bfloat16}


def test_rotary_buffers_of_old_files_are_ignored(folder: Path) -> None:
    names = ["transformer.rotary_emb.inv_freq", "transformer.h.2.attn.rotary_emb.inv_freq"]
    change_tensors(folder / FIRST, lambda tensors: tensors.update({name: torch.zeros(8) for name in names}))
    change_json(folder / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(names, FIRST)))
    assert names[0] in HfFolder(folder).tensors
    change_tensors(
        folder / FIRST, lambda tensors: tensors.update({"transformer.h.3.attn.rotary_emb.inv_freq": torch.zeros(8)})
    )
    assert "transformer.h.3.attn.rotary_emb.inv_freq is not in" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../hf/" + FIRST, "/etc/passwd", "sub/" + FIRST, "..", "", ".", "a\\b.safetensors", "x\0y", None, 7, ["x"]]
)
def test_an_index_may_name_only_plain_files(name: object, folder: Path) -> None:
    change_json(folder / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    assert f"names a file {name!r}; only plain names of files in the folder are allowed" in refused(folder)


def test_links_that_leave_the_folder_are_refused(folder: Path) -> None:
    outside = folder.parent / "elsewhere.safetensors"
    shutil.move(folder / FIRST, outside)
    (folder / FIRST).symlink_to(outside)
    assert f"{folder / FIRST}: is a link to {outside}, outside of the folder" in refused(folder)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    shutil.move(folder / FIRST, folder / "weights.safetensors")
    (folder / FIRST).symlink_to("weights.safetensors")
    assert len(HfFolder(folder).tensors) == 27


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / SECOND).unlink()
    assert f"{folder / SECOND}: missing" in refused(folder)
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'}: missing" in refused(folder)


def test_a_file_under_two_names_is_refused(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder / "model.safetensors")
    assert "has both model.safetensors and model.safetensors.index.json" in refused(folder)


def header(content: dict[str, Any] | bytes, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


OVERLAPPING = {
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
}
HUGE = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(b"{}", 2**60),
        header(b"{}", 2**63 + 5),
        header(OVERLAPPING) + bytes(24),
        header(HUGE) + bytes(64),
        header(b"{" * 1000),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
    ],
    ids=["empty", "length-2^60", "length-2^63", "overlap", "huge-shape", "nesting", "negative"],
)
def test_a_wrong_header_is_refused(content: bytes, folder: Path) -> None:
    (folder / FIRST).write_bytes(content)
    assert f"{folder / FIRST}: is not a whole safetensors file" in refused(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[:-1])
    assert f"{folder / FIRST}: is not a whole safetensors file" in refused(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100000, "\udcff", '{"weight_map": []}', "{}"])
def test_a_garbled_index_is_refused(content: str, folder: Path) -> None:
    (folder / INDEX).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert f"{folder / INDEX}: " in refused(folder)


def test_a_pickle_is_refused_by_name_and_not_opened(folder: Path, tmp_path: Path) -> None:
    for file in (FIRST, SECOND, INDEX):
        (folder / file).unlink()
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (canary,))

    torch.save({"transformer.wte.weight": Payload()}, folder / "pytorch_model.bin")
    assert f"{folder / 'pytorch_model.bin'}: is a pickle, which can run code" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in refused(folder)
    assert not canary.exists()


def test_custom_code_is_not_imported(folder: Path, tmp_path: Path) -> None:
    """The fixture's config.json has an auto_map; the code it names would leave a file behind."""
    canary = tmp_path / "canary"
    for module in ("configuration_qwen", "modeling_qwen", "tokenization_qwen"):
        (folder / f"{module}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    from_hf(folder, tmp_path / "out")
    assert not canary.exists()
    assert not [name for name in sys.modules if name.endswith(("configuration_qwen", "modeling_qwen"))]


def test_no_connection_is_opened(folder: Path, tmp_path: Path) -> None:
    """Python's own sockets end the process, imports included; libraries that go around Python are not seen."""
    guard = (
        "import gc, os, sys\n"
        "gc.disable()\n"
        "def guard(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        os.write(2, f'{event} {arguments}'.encode())\n"
        "        os._exit(97)\n"
        "sys.addaudithook(guard)\n"
    )
    convert = (
        "from pathlib import Path\n"
        "from qwen_megatron.convert.from_hf import from_hf\n"
        "from_hf(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    connect = "import socket\nsocket.socket().connect(('127.0.0.1', 1))\n"
    arguments = [str(folder), str(tmp_path / "out")]
    statuses = []
    for code in (connect, convert):
        done = subprocess.run(
            [sys.executable, "-c", guard + code, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        statuses.append((done.returncode, done.stderr))
    assert statuses[0][0] == 97, "the guard itself works"
    assert statuses[1][0] == 0, statuses[1][1]
    assert (tmp_path / "out").is_dir()


def test_a_tied_output_matrix_may_be_stored_once_more_if_it_is_equal(tmp_path: Path) -> None:
    from_hf(FIXTURES / "tied-head-equal", tmp_path / "checkpoint")
    message = "model.safetensors: lm_head.weight differs from model.embed_tokens.weight in row "
    with pytest.raises(CheckpointError, match=re.escape(message)):
        from_hf(FIXTURES / "tied-head-other", tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("change", ["bits", "dtype", "sign of zero"])
def test_a_tied_output_matrix_is_compared_bit_for_bit(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "COMPARED_ROWS", 10)
    folder = Path(shutil.copytree(FIXTURES / "tied-head-equal", tmp_path / "hf"))

    def harm(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["lm_head.weight"]
        if change == "dtype":
            tensors["lm_head.weight"] = head.float()
        elif change == "bits":
            head[57, 3] = torch.nextafter(head[57, 3], torch.tensor(9.0, dtype=head.dtype))
        else:
            tensors["model.embed_tokens.weight"][57, 3], head[57, 3] = 0.0, -0.0

    change_tensors(folder / "model.safetensors", harm)
    words = (
        "lm_head.weight is F32 [64, 16]" if change == "dtype" else "differs from model.embed_tokens.weight in row 57"
    )
    assert words in refused(folder)


def test_a_single_file_is_read_too(folder: Path) -> None:
    sharded = HfFolder(folder)
    expected = {
        entry.key: sharded.read(Part(entry, 1 if entry.is_layered else None)) for entry in entries(sharded.model)
    }
    save_file(load_file(folder / FIRST) | load_file(folder / SECOND), folder / "model.safetensors")
    for file in (FIRST, SECOND, INDEX):
        (folder / file).unlink()
    single = HfFolder(folder)
    for entry in entries(single.model):
        assert torch.equal(single.read(Part(entry, 1 if entry.is_layered else None)), expected[entry.key])
