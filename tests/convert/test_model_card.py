"""The README.md of an export: figures of the run, and only text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from qwen_megatron.checkpoint.state import CheckpointState, saved_model_config
from qwen_megatron.convert.hf_config import fitting_format
from qwen_megatron.convert.model_card import cell, losses, model_card
from qwen_megatron.convert.name_map import Format


def test_the_card_of_a_trained_model(trained_bf16: Path, tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000002"
    folder.mkdir()
    shutil.copy(trained_bf16 / "state.json", folder)
    state, model = CheckpointState.read(folder), saved_model_config(folder)
    step = state.train_state.iteration
    rows = [
        {"step": step - 1, "loss": 9.0},
        {"step": step, "loss": 4.5},
        {"step": step, "eval_loss": 4.25},
        {"step": step + 1, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "torn")
    card = model_card(folder, "first", model, Format.QWEN2)
    assert card.startswith("---\nlibrary_name: transformers\n---\n\n# first\n")
    assert f"| steps | {step} |" in card
    assert f"| tokens | {state.train_state.consumed_tokens:,} |" in card
    assert "| training loss | 4.5000 |" in card
    assert "| held-out loss | 4.2500 |" in card
    ((prefix, entry),) = state.data.items()
    assert f"| {Path(prefix).name} | {entry['consumed_samples']} | {entry['fingerprint']} |" in card
    assert str(Path(prefix).parent) not in card
    recipe = json.loads(card.split("```json\n")[1].split("```")[0])
    assert recipe == {section: state.config[section] for section in ("model", "optimizer", "training")}


def test_without_metrics_there_are_no_losses(tmp_path: Path) -> None:
    assert list(losses(tmp_path / "metrics.jsonl", 5)) == []


def test_names_are_no_markup() -> None:
    assert cell("a|b\n<script>`\x1b") == "a\\|b &lt;script>'\\x1b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Format.QWEN2),
        ({"use_logn_attn": True}, Format.QWEN1),
        ({"use_dynamic_ntk": True}, Format.QWEN1),
        ({"use_dynamic_ntk": True, "num_query_groups": 1}, Format.QWEN2),
        ({"use_logn_attn": True, "kv_channels": 8}, Format.QWEN2),
    ],
)
def test_the_format_that_fits(changes: dict[str, object], expected: Format, imported_mini: Path) -> None:
    model = saved_model_config(imported_mini)
    plain = dataclasses.replace(model, use_dynamic_ntk=False, use_logn_attn=False)
    assert fitting_format(dataclasses.replace(plain, **changes)) is expected  # type: ignore[arg-type]
