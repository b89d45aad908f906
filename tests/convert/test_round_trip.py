"""Checkpoints to Hugging Face folders and back: grouped queries, tied embeddings, other head sizes, bf16, masters."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from qwen_megatron.checkpoint.load import load_model, verify_checkpoint
from qwen_megatron.checkpoint.manifest import read_manifest, write_manifest, write_synced
from qwen_megatron.checkpoint.state import CheckpointState, saved_model_config
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.from_hf import PIECE_BYTES, from_hf, write_weights
from qwen_megatron.convert.hf_config import fitting_format
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.convert.load_hf_weights import load_hf_weights
from qwen_megatron.convert.name_map import Format, Part, entries, parts
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.convert.verify import verify
from qwen_megatron.errors import CheckpointError
from qwen_megatron.inference.loading import single_process
from qwen_megatron.model.builder import build_model, unwrapped
from tests.convert.random_weights import SHAPES, TINY, TINY3, RandomWeights
from tests.convert.round_trip import assert_same_tensors, check_conversion, load_folder


@pytest.mark.parametrize("name", SHAPES)
def test_conversion_of_random_models(name: str, tmp_path: Path) -> None:
    write_weights(RandomWeights(SHAPES[name]), tmp_path / "checkpoint")
    check_conversion(tmp_path / "checkpoint", tmp_path)


def test_conversion_of_a_trained_bf16_model(trained_bf16: Path, tmp_path: Path) -> None:
    check_conversion(trained_bf16, tmp_path)
    masters, weights = load_folder(tmp_path / "qwen2-fp32"), load_folder(tmp_path / "qwen2-bf16")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj.weight"
    # Masters carry what bf16 cannot: exporting the rounded weights as fp32 would lose it.
    assert not torch.equal(masters[name], weights[name].float())


@pytest.mark.parametrize("stretches", [False, True])
def test_a_longer_context_that_was_trained_on_is_exported(
    stretches: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = dataclasses.replace(TINY, use_logn_attn=stretches)
    checkpoint = tmp_path / "checkpoint"
    write_weights(RandomWeights(model), checkpoint)
    content = json.loads((checkpoint / "state.json").read_text())
    content["config"]["training"] = {"seq_length": 4 * model.seq_length}
    files = read_manifest(checkpoint)
    write_manifest(
        checkpoint, {**files, "state.json": write_synced(checkpoint / "state.json", json.dumps(content).encode())}
    )
    for hf_format, keys in (
        (Format.QWEN1, ("seq_length", "max_position_embeddings")),
        (Format.QWEN2, ("max_position_embeddings",)),
    ):
        caplog.clear()
        folder = tmp_path / hf_format
        to_hf(checkpoint, folder, hf_format=hf_format)
        config = json.loads((folder / "config.json").read_text())
        assert {config[key] for key in keys} == {model.seq_length if stretches else 4 * model.seq_length}
        said = f"max_position_embeddings is {4 * model.seq_length}, the context it was trained on"
        assert (said in caplog.text) == (not stretches)
        with single_process() as groups:
            assert verify(checkpoint, folder, groups).is_good


def test_a_checkpoint_of_weights_holds_the_model_in_its_dtype(tmp_path: Path) -> None:
    source = RandomWeights(SHAPES["grouped"], torch.bfloat16)
    write_weights(source, tmp_path / "checkpoint")
    verify_checkpoint(tmp_path / "checkpoint")
    state = CheckpointState.read(tmp_path / "checkpoint")
    assert (state.train_state.iteration, state.models["model"].optimizer) == (0, [])
    assert saved_model_config(tmp_path / "checkpoint") == source.model
    read = CheckpointWeights(tmp_path / "checkpoint")
    for part in parts(source.model):
        assert read.dtype(part.entry) is torch.bfloat16
        assert torch.equal(read.read(part), source.read(part))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_load_into_a_model_of_another_precision(stored: torch.dtype, precision: str, tmp_path: Path) -> None:
    source = RandomWeights(SHAPES["grouped"], stored)
    write_weights(source, tmp_path / "checkpoint")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    with single_process("cpu") as groups:
        loaded = unwrapped(build_model(source.model, groups, precision=precision, seed=1))
        load_model(tmp_path / "checkpoint", loaded)
        filled = unwrapped(build_model(source.model, groups, precision=precision, seed=2))
        load_hf_weights(source, filled)
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}
    for (name, left), (_, right) in zip(loaded.named_parameters(), filled.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    entry = next(entry for entry in entries(source.model) if entry.key.endswith("linear_fc2.weight"))
    expected = source.read(Part(entry, 1)).to(dtype)
    assert torch.equal(loaded.decoder.layers[1].mlp.linear_fc2.weight, expected)


def test_dtype_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    write_weights(RandomWeights(TINY, torch.bfloat16), tmp_path / "checkpoint")
    for dtype, expected in ((None, "bfloat16"), ("bf16", "bfloat16"), ("fp32", "float32")):
        out = tmp_path / f"as-{dtype}"
        to_hf(tmp_path / "checkpoint", out, hf_format=Format.QWEN2, dtype=dtype)
        assert {str(tensor.dtype) for tensor in load_folder(out).values()} == {f"torch.{expected}"}
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == expected


@pytest.mark.parametrize("max_shard_bytes", [1, 5000, 20000])
def test_sharded_export_holds_the_same_tensors(max_shard_bytes: int, tmp_path: Path) -> None:
    write_weights(RandomWeights(TINY), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "whole", hf_format=Format.QWEN2)
    to_hf(tmp_path / "checkpoint", tmp_path / "cut", hf_format=Format.QWEN2, max_shard_bytes=max_shard_bytes)
    assert_same_tensors(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    sizes = {name: tensor.nbytes for name, tensor in load_folder(tmp_path / "cut").items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    files: dict[str, list[int]] = {}
    for name, file in index["weight_map"].items():
        files.setdefault(file, []).append(sizes[name])
    assert len(files) > 2
    assert all(len(held) == 1 or sum(held) <= max_shard_bytes for held in files.values())
    # The index and the files are what transformers reads.
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "cut", local_files_only=True)
    whole = load_folder(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


def test_embeddings_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_megatron.convert.from_hf.PIECE_BYTES", 10 * TINY.hidden_size * 4)
    write_weights(RandomWeights(TINY), tmp_path / "pieces")
    pieces = CheckpointWeights(tmp_path / "pieces")
    assert len(pieces.tensors["model.embedding.word_embeddings.weight"].chunks) == 7
    for part in parts(TINY):
        assert torch.equal(pieces.read(part), RandomWeights(TINY).read(part))
    embedding = next(parts(TINY))
    assert torch.equal(pieces.read(embedding, slice(5, 23)), RandomWeights(TINY).read(embedding)[5:23])
    assert PIECE_BYTES > 1 << 20


def test_qwen2_notes_what_it_cannot_express(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = dataclasses.replace(TINY, use_dynamic_ntk=True, use_logn_attn=True)
    write_weights(RandomWeights(model), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "out", hf_format=Format.QWEN2)
    assert "use_dynamic_ntk and use_logn_attn cannot be expressed in the qwen2 format" in caplog.text


NORMS_AND_BIASES = dataclasses.replace(TINY, qk_layernorm=True)
NEITHER = dataclasses.replace(TINY, add_qkv_bias=False)


@pytest.mark.parametrize(
    ("model", "hf_format", "words"),
    [
        (SHAPES["grouped"], Format.QWEN1, "num_query_groups=2: .* use --format qwen2"),
        (dataclasses.replace(TINY, kv_channels=12), Format.QWEN1, "num_attention_heads=4 x kv_channels=12"),
        (TINY3, Format.QWEN1, "qk_layernorm=true, add_qkv_bias=false: the qwen1 format has .* use --format qwen3"),
        (TINY3, Format.QWEN2, "qk_layernorm=true, add_qkv_bias=false: the qwen2 format has .* use --format qwen3"),
        (TINY, Format.QWEN3, "qk_layernorm=false, add_qkv_bias=true: the qwen3 format has .* use --format qwen2"),
        (NORMS_AND_BIASES, None, "qk_layernorm=true, add_qkv_bias=true: .* no Hugging Face format has both"),
        (NEITHER, None, "qk_layernorm=false, add_qkv_bias=false: .* no Hugging Face format has both"),
    ],
)
def test_a_format_refuses_what_it_cannot_express(
    model: ModelConfig, hf_format: Format | None, words: str, tmp_path: Path
) -> None:
    write_weights(RandomWeights(model), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=words):
        to_hf(tmp_path / "checkpoint", tmp_path / "out", hf_format=hf_format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize(
    ("model", "fitting"),
    [
        (TINY, Format.QWEN2),
        (TINY3, Format.QWEN3),
        (dataclasses.replace(TINY, use_logn_attn=True), Format.QWEN1),
        (dataclasses.replace(SHAPES["grouped"], use_logn_attn=True), Format.QWEN2),
        (dataclasses.replace(TINY3, use_dynamic_ntk=True), Format.QWEN3),
    ],
)
def test_the_format_that_loses_least_is_chosen(model: ModelConfig, fitting: Format) -> None:
    assert fitting_format(model) is fitting


def test_folders_are_told_apart(qwen1_mini: Path, imported_mini: Path, tmp_path: Path) -> None:
    assert is_hf_folder(qwen1_mini)
    assert not is_hf_folder(imported_mini)
    assert not is_hf_folder(tmp_path)


def test_an_existing_folder_is_replaced_only_when_asked(qwen1_mini: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    from_hf(qwen1_mini, out)
    # The same weights give the same bytes, so what tells the new folder from the old one is the file itself.
    before = (out / "manifest.json").stat()
    with pytest.raises(CheckpointError, match="exists; choose another name, or replace it with --overwrite"):
        from_hf(qwen1_mini, out)
    to_hf(tmp_path / "out", tmp_path / "hf", hf_format=Format.QWEN1)
    from_hf(tmp_path / "hf", out, overwrite=True)
    assert not os.path.samestat((out / "manifest.json").stat(), before)
    assert HfFolder(tmp_path / "hf").model == saved_model_config(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_a_folder_that_is_no_model_is_never_replaced(qwen1_mini: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="does not hold a model, --overwrite does not replace it"):
        from_hf(qwen1_mini, tmp_path / "precious", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match="is not a folder"):
        from_hf(qwen1_mini, tmp_path / "link", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_a_failed_conversion_leaves_nothing(qwen1_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen_megatron.convert.from_hf.write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        from_hf(qwen1_mini, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
