"""Damaged, incomplete and hostile checkpoints are refused before anything is converted."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from qwen_megatron.checkpoint.unpickler import read_metadata
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.name_map import Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.errors import CheckpointError

QKV = "model.decoder.layers.self_attention.linear_qkv.weight"


@pytest.fixture
def checkpoint(imported_mini: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(imported_mini, tmp_path / "checkpoint"))


def refused(checkpoint: Path) -> str:
    """The message with which the checkpoint is refused; nothing is written."""
    with pytest.raises(CheckpointError) as caught:
        to_hf(checkpoint, checkpoint.parent / "out", hf_format=Format.QWEN2)
    assert [path.name for path in checkpoint.parent.iterdir() if "out" in path.name] == []
    return str(caught.value)


def rewrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Replaces a file and enters it in the manifest, as somebody who means harm would."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def change_metadata(checkpoint: Path, change: Callable[[Metadata], Any]) -> None:
    metadata = read_metadata(checkpoint / ".metadata")
    change(metadata)
    rewrite(checkpoint, ".metadata", pickle.dumps(metadata))


def test_a_pickled_call_in_the_metadata_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (canary,))

    rewrite(checkpoint, ".metadata", pickle.dumps(Payload()))
    assert f"{checkpoint / '.metadata'}: its pickle asks for" in refused(checkpoint)
    assert not canary.exists()


def test_a_pickled_call_in_a_shard_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (canary,))

    size = (checkpoint / "__0_0.distcp").stat().st_size
    torch.save(Payload(), checkpoint / "payload")
    payload = (checkpoint / "payload").read_bytes()
    (checkpoint / "payload").unlink()

    def everything_is_the_payload(metadata: Metadata) -> None:
        for entry in metadata.storage_data.values():
            entry.offset, entry.length = 0, len(payload)

    rewrite(checkpoint, "__0_0.distcp", payload + bytes(size - len(payload)))
    change_metadata(checkpoint, everything_is_the_payload)
    assert "cannot be read" in refused(checkpoint)
    assert not canary.exists()


def test_pickled_objects_among_the_tensors_are_refused(checkpoint: Path) -> None:
    metadata = read_metadata(checkpoint / ".metadata")
    metadata.state_dict_metadata["rng"] = BytesStorageMetadata()
    rewrite(checkpoint, ".metadata", pickle.dumps(metadata))
    assert "BytesStorageMetadata" in refused(checkpoint)


def test_the_metadata_may_name_only_files_of_the_checkpoint(checkpoint: Path) -> None:
    def lead_outside(metadata: Metadata) -> None:
        next(iter(metadata.storage_data.values())).relative_path = "../secret"

    change_metadata(checkpoint, lead_outside)
    assert f"{checkpoint / '.metadata'}: names a file '../secret'" in refused(checkpoint)


def test_a_flipped_byte_is_named(checkpoint: Path) -> None:
    path = checkpoint / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: sha256 is " in refused(checkpoint)


def test_an_incomplete_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    assert f"{checkpoint / 'manifest.json'}: missing" in refused(checkpoint)


def test_a_run_is_answered_with_its_checkpoint(trained_bf16: Path) -> None:
    with pytest.raises(CheckpointError, match=f"name one of the checkpoints in it, such as {trained_bf16}"):
        CheckpointWeights(trained_bf16.parent)


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    change_metadata(checkpoint, lambda metadata: metadata.state_dict_metadata.pop(QKV))
    assert f"{checkpoint / '.metadata'}: {QKV} is missing; expected shape [3, 144, 48]" in refused(checkpoint)


def test_an_extra_tensor_is_named(checkpoint: Path) -> None:
    def add(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.decoder.layers.gate"] = metadata.state_dict_metadata[QKV]

    change_metadata(checkpoint, add)
    assert "decoder.layers.gate of shape [3, 144, 48] is extra" in refused(checkpoint)


def test_a_wrong_shape_is_named_with_the_right_one(checkpoint: Path) -> None:
    def cut(metadata: Metadata) -> None:
        metadata.state_dict_metadata[QKV].size = torch.Size([2, 144, 48])

    change_metadata(checkpoint, cut)
    assert f"{QKV} has shape [2, 144, 48]; expected [3, 144, 48]" in refused(checkpoint)


def test_a_vocabulary_that_is_too_small_is_refused(checkpoint: Path) -> None:
    def cut(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.output_layer.weight"].size = torch.Size([159, 48])

    change_metadata(checkpoint, cut)
    assert "output_layer.weight has shape [159, 48]; expected [160, 48]" in refused(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    change_metadata(checkpoint, lambda metadata: metadata.state_dict_metadata[QKV].chunks.pop())
    assert f"{QKV} has {3 * 144 * 48} elements, but its shards hold {2 * 144 * 48}" in refused(checkpoint)


def test_a_wrong_dtype_is_named(trained_bf16: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained_bf16, tmp_path / "checkpoint"))
    key = "model.optimizer.state.exp_avg.decoder.final_layernorm.weight"

    def retype(metadata: Metadata) -> None:
        properties = metadata.state_dict_metadata[key].properties
        properties.dtype = torch.float16

    change_metadata(checkpoint, retype)
    assert f"{key} has dtype torch.float16; expected torch.float32" in refused(checkpoint)


def test_half_of_the_optimizer_is_refused(trained_bf16: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained_bf16, tmp_path / "checkpoint"))
    key = "model.optimizer.state.param.output_layer.weight"
    change_metadata(checkpoint, lambda metadata: metadata.state_dict_metadata.pop(key))
    assert f"{key} is missing" in refused(checkpoint)
