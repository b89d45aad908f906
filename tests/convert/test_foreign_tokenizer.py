"""A model of another tokenizer's tokens is exported without Qwen's tokenizer files."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data_tools.tokenizer.qwen import FINGERPRINT
from qwen_megatron.checkpoint.manifest import hashed, write_manifest
from qwen_megatron.checkpoint.state import STATE, CheckpointState
from qwen_megatron.convert import to_hf as export
from qwen_megatron.convert.from_hf import write_weights
from qwen_megatron.convert.name_map import Format
from tests.convert.random_weights import TINY, RandomWeights, formats_of

OTHER, OF_QWEN = f"qwen-{'0' * 64}", FINGERPRINT


def checkpoint(folder: Path, corpora: list[dict[str, Any]], vocab_size: int) -> Path:
    """A checkpoint that says it was trained on these corpora; narrow, its vocabulary alone matters."""
    model = dataclasses.replace(TINY, vocab_size=vocab_size, hidden_size=8, kv_channels=2)
    write_weights(RandomWeights(model), folder)
    state = CheckpointState.read(folder)
    data = {str(i): {"fingerprint": "f", "consumed_samples": 1, **corpus} for i, corpus in enumerate(corpora)}
    config = {**state.config, "data": {"blend": list(data)}}
    (folder / STATE).write_bytes(dataclasses.replace(state, data=data, config=config).to_json())
    files = {path.name: hashed(path) for path in folder.iterdir() if path.name != "manifest.json"}
    write_manifest(folder, files)
    return folder


@pytest.mark.parametrize(
    ("corpora", "reason"),
    [
        ([], ""),
        ([{"tokenizer": OF_QWEN, "end_of_document": 151643}], ""),
        ([{"tokenizer": None, "end_of_document": 151643}], ""),
        ([{"tokenizer": None}], ""),  # An imported corpus in a checkpoint of an earlier version.
        ([{"tokenizer": OTHER}], "were not made with Qwen's tokenizer"),
        ([{"tokenizer": OF_QWEN}, {"tokenizer": OTHER, "end_of_document": 151643}], "were not made with Qwen's"),
        ([{"tokenizer": None, "end_of_document": 50256}], "were not made with Qwen's tokenizer"),
    ],
)
@pytest.mark.parametrize("hf_format", formats_of(TINY))
def test_tokenizer_files_are_those_of_the_corpora(
    corpora: list[dict[str, Any]],
    reason: str,
    hf_format: Format,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Making the files takes seconds; their content is compared elsewhere.
    monkeypatch.setattr(export, "write_tokenizer", lambda folder, *_: (folder / "tokenizer.json").touch())
    out = tmp_path / "export"
    with caplog.at_level(logging.WARNING):
        export.to_hf(checkpoint(tmp_path / "checkpoint", corpora, 151936), out, hf_format=hf_format)
    assert (out / "tokenizer.json").exists() == (not reason)
    assert [reason in record.message and "no tokenizer files" in record.message for record in caplog.records] == (
        [True] if reason else []
    )
    for name in ("config.json", "generation_config.json"):
        content = json.loads((out / name).read_text())
        assert ("eos_token_id" in content) == (not reason)
        assert not reason or "tokenizer_class" not in content


def test_a_small_vocabulary_has_no_tokenizer_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        export.to_hf(checkpoint(tmp_path / "checkpoint", [], 151850), tmp_path / "export", hf_format=Format.QWEN2)
    assert "vocab_size=151850 is smaller than Qwen's 151851" in caplog.text
    assert not list((tmp_path / "export").glob("tokenizer*"))
