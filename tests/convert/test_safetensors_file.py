"""Our reader and writer of safetensors against the library's own, and files that it would take."""

from __future__ import annotations

import json
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_megatron.convert import safetensors_file
from qwen_megatron.convert.safetensors_file import SafetensorsFile, write_safetensors
from qwen_megatron.errors import CheckpointError


def tensors() -> dict[str, torch.Tensor]:
    """All three dtypes; an odd number of narrow numbers before wide ones, an empty tensor, a single number."""
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randn(7, 3, generator=generator).bfloat16(),
        "wide": torch.randn(5, 4, generator=generator),
        "half": torch.randn(9, generator=generator).half(),
        "none": torch.zeros(0, 4),
        "number": torch.tensor(3.5),
        "deep": torch.randn(3, 4, 2, generator=generator),
    }


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    written = tensors()
    planned = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in written.items()}
    write_safetensors(tmp_path / "file", planned, written.items())
    read = load_file(tmp_path / "file")
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in written.items())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    written = tensors()
    save_file(written, tmp_path / "file", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "file")
    for name, tensor in written.items():
        assert torch.equal(file.read(name), tensor)
    assert torch.equal(file.read("odd", slice(2, 5)), written["odd"][2:5])
    assert torch.equal(file.read("odd", slice(2, 5), slice(1, 3)), written["odd"][2:5, 1:3])
    assert torch.equal(file.read("wide", None, slice(0, 2)), written["wide"][:, :2])
    assert torch.equal(file.read("deep", slice(1, 3), slice(2, 4)), written["deep"][1:3, 2:4])


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(8):
            tensor = torch.full((1000,), float(number))
            made.append(weakref.ref(tensor))
            most = max(most, sum(one() is not None for one in made))
            yield str(number), tensor

    write_safetensors(tmp_path / "file", {str(n): ((1000,), torch.float32) for n in range(8)}, stream())
    # The one before is still a variable of the writer and of the stream.
    assert most <= 2
    assert SafetensorsFile(tmp_path / "file").read("7")[-1] == 7.0


def test_what_was_not_planned_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="b came where a was planned"):
        write_safetensors(tmp_path / "file", {"a": ((1,), torch.float32)}, [("b", torch.zeros(1))])


def entry(start: int, stop: int, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "'b' begins at byte"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "'b' begins at byte"),
        ({"a": entry(4, 8)}, 8, "'a' begins at byte"),
        ({"a": entry(0, 4)}, 8, "bytes, its header says"),
        ({"a": entry(0, 4)}, 0, "bytes, its header says"),
        ({"a": entry(0, 4, (2,))}, 4, "which is not the bytes"),
        ({"a": entry(4, 0, (1,))}, 4, "which is not the bytes"),
        ({"a": entry(0, 0, (2**62, 2**62))}, 0, "which is not the bytes"),
        ({"a": entry(0, 4, (-1, -1))}, 4, "whole numbers"),
        ({"a": entry(0, 4) | {"shape": [1.0]}}, 4, "whole numbers"),
        ({"a": entry(0, 4) | {"shape": [True]}}, 4, "whole numbers"),
        ({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, 4, "which is not the bytes"),
        ({"a": entry(0, 4, dtype="F31")}, 4, "unknown dtype"),
        ({"a": entry(0, 4) | {"more": 1}}, 4, "should have dtype, shape and data_offsets"),
        ({"a": None}, 0, "should have dtype, shape and data_offsets"),
        ([], 0, "should be an object"),
    ],
)
def test_a_garbled_header_is_refused(header: Any, size: int, words: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(CheckpointError, match=words) as caught:
        SafetensorsFile(tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: is not a whole safetensors file")


def test_a_long_header_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with the file's size and with the largest there is, before memory is taken."""
    monkeypatch.setattr(safetensors_file, "LARGEST_BYTES", 10)
    (tmp_path / "file").write_bytes(struct.pack("<Q", 11) + b'{"a":  1}  ')
    with pytest.raises(CheckpointError, match="should be an object of 11 bytes"):
        SafetensorsFile(tmp_path / "file")


def test_a_file_that_is_cut_meanwhile_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "file")
    file = SafetensorsFile(tmp_path / "file")
    with (tmp_path / "file").open("rb+") as stream:
        stream.truncate(2000)
    with pytest.raises(OSError, match="has become shorter"):
        file.read("a")
