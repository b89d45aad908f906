"""Configuration as JSON and back."""

from __future__ import annotations

import json

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.config.resolve import resolve
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.config.sections.training import TrainingConfig
from qwen_megatron.config.serialize import from_dict, to_dict
from qwen_megatron.errors import ConfigError

KINDS = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
}


@pytest.mark.parametrize("blend", ["[a/b, c]", "{a/b: 0.25, c: 3}", "[]"])
def test_every_section_survives_json(blend: str) -> None:
    overrides = [
        f"data.blend={blend}",
        "data.eval_blend={x: d, y: [e, f]}",
        "model.preset=qwen-14b",
        "training.exit_iter=7",
        "optimizer.lr=0.1",
    ]
    resolved = resolve(load_config(None, overrides))
    for name, kind in KINDS.items():
        section = getattr(resolved, name)
        assert from_dict(kind, json.loads(json.dumps(to_dict(section))), name) == section


def test_a_whole_plan_is_plain_data() -> None:
    resolved = resolve(load_config(None, ["model.preset=tiny", "data.blend={a: 1}"]))
    content = json.loads(json.dumps(to_dict(resolved)))
    assert content["model"]["hidden_size"] == 64
    assert content["layers_per_stage"] == [4]
    assert content["data"]["blend"] == {"a": 1.0}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"hiden_size": 1}, ["model.hiden_size=1: unknown key; the closest known one is hidden_size"]),
        ({"num_layers": "4"}, ["model.num_layers=4: must be an integer"]),
        ({"num_layers": True}, ["model.num_layers=true: must be an integer"]),
        ({"num_layers": 4.0}, ["model.num_layers=4: must be an integer; use 4"]),
        ({"num_layers": None}, ["model.num_layers=null: must be an integer"]),
        ({"num_layers": -1}, ["model.num_layers=-1: must be at least 1; use 1"]),
        ({"rotary_base": 10000}, []),
        ({"rotary_base": float("nan")}, ["model.rotary_base=nan: must be a finite number; use 10000 (the default)"]),
        ({"use_logn_attn": 1}, ["model.use_logn_attn=1: must be true or false; use false (the default)"]),
        ({"implementation": ["torch"]}, ["model.implementation=['torch']: must be a string; use auto (the default)"]),
        ({"seq_length": "x", "what": 1}, None),
    ],
)
def test_bad_content_is_refused_with_every_problem(change: dict[str, object], problems: list[str] | None) -> None:
    content = to_dict(PRESETS["tiny"]) | change
    if problems == []:
        assert from_dict(ModelConfig, content, "model") == PRESETS["tiny"]
        return
    with pytest.raises(ConfigError) as raised:
        from_dict(ModelConfig, content, "model")
    if problems is None:
        assert len(raised.value.problems) == len(change)
    else:
        assert raised.value.problems == problems


def test_missing_keys_and_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(ModelConfig, {"num_layers": 2}, "model")
    assert "model.hidden_size: is missing" in raised.value.problems
    for content in (None, [], "x", 3):
        with pytest.raises(ConfigError, match="must be a mapping of settings"):
            from_dict(ModelConfig, content, "model")
    with pytest.raises(ConfigError, match=r"data\.blend=\[1\]: must be a list or a mapping"):
        from_dict(DataConfig, {"blend": [1], "eval_samples": 0, "num_workers": 0}, "data")
