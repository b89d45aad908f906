"""A configuration of any content is read, or refused with a few words, within seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.errors import ConfigError

LONG = "x" * 60_000
TEXT_KEYS = ("checkpoint.directory", "checkpoint.load", "checkpoint.init_from", "logging.wandb_project")


def section(name: str, lines: list[str]) -> str:
    return f"{name}:\n" + "".join(f"  {line}\n" for line in lines)


FILES = {
    "60,000 unknown keys": section("training", [f"key_{i}: 1" for i in range(60_000)]),
    "900 unknown keys": section("training", [f"key_{i}: 1" for i in range(900)]),
    "900 unknown sections": "".join(f"section{i}: {{seed: 1}}\n" for i in range(900)),
    "a long key": section("training", [f"{LONG}: 1"]),
    "a long section": f"{LONG}: {{seed: 1}}\n",
    "references": section("checkpoint", [f'directory: "{"${training.seed}" * 4000}"']),
    "a list of references": section("data", ['blend: ["' + '","'.join(["${training.seed}"] * 4000) + '"]']),
    "unknown references": section("data", ['blend: ["' + '","'.join(["${training.sed}"] * 4000) + '"]']),
    "references to references": "".join(
        f"{name.partition('.')[0]}:\n  {name.partition('.')[2]}: '{f'${{{of}}}' * 40}'\n"
        for name, of in [("checkpoint.directory", "logging.wandb_project"), ("logging.wandb_project", "data.blend")]
    )
    + section("data", ["blend: ['${optimizer.lr}']"]),
    "aliases": "data: {blend: &a [" + "x," * 30_000 + "]}\ncheckpoint: &b {allow_changes: *a}\nlogging: *b\n",
    "nested": "data: {blend: " + "[" * 50_000 + "]" * 50_000 + "}",
    "a long value": section("model", [f"preset: {LONG}"]),
    "a number of 60,000 digits": section("optimizer", [f"lr: {'9' * 60_000}"]),
    "a number beyond a float": section(
        "optimizer", ["lr: 1e400", f"clip_grad: {'9' * 400}", f"adam_eps: -1{'0' * 320}"]
    ),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_file_is_refused_in_seconds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        resolve(load_config(path))
    assert time.process_time() - started < 10
    assert max(map(len, caught.value.problems)) < 1000


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_text_is_a_path_at_most(key: str) -> None:
    with pytest.raises(ConfigError, match="must not be longer than 4096 characters"):
        load_config(None, [f"{key}={LONG}"])
    other = next(name for name in TEXT_KEYS if name != key)
    with pytest.raises(ConfigError, match="must not be longer than 4096 characters with what it refers to"):
        load_config(None, [f"{key}=${{{other}}}${{{other}}}", f"{other}={'x' * 3000}${{training.seed}}"])


def test_a_few_references_are_followed() -> None:
    config = load_config(None, ["checkpoint.directory=${training.seed}/${training.seed}", "training.seed=7"])
    assert config["checkpoint"]["directory"] == "7/7"
