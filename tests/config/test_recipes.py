"""Recipes of the package, and several configuration files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.config.load import load_config
from qwen_megatron.config.recipes import recipes
from qwen_megatron.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_the_examples_are_the_recipes() -> None:
    for name, path in recipes().items():
        assert (ROOT / "examples" / path.name).read_bytes() == path.read_bytes()
        assert load_config(f"recipe:{name}") == load_config(ROOT / "examples" / path.name)
    names = list(recipes())
    assert names[:4] == ["demo", "demo-ppo", "demo-reward", "demo-sft"]
    sized = names[4:]
    assert (sized[0], sized[-1]) == ("qwen-0.5b", "qwen-72b")
    sizes = [float(name.rpartition("-")[2].removesuffix("b")) for name in sized]
    assert sizes == sorted(sizes)


def test_an_unknown_recipe_has_a_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"recipe:qwen-7: there is no such recipe; the closest one is recipe:qwen-7b"):
        load_config("recipe:qwen-7")


def test_later_files_win_and_overrides_win_over_all(tmp_path: Path) -> None:
    cluster, run = tmp_path / "cluster.yaml", tmp_path / "run.yaml"
    cluster.write_text("optimizer: {lr: 0.25, clip_grad: 3.0}\ntraining: {seed: 5}\n")
    run.write_text("optimizer: {lr: 0.125}\ntraining: {seq_length: 64}\n")
    settings = load_config(["recipe:demo", cluster, run], ["training.seq_length=32"])
    assert (settings["optimizer"]["lr"], settings["optimizer"]["clip_grad"]) == (0.125, 3.0)
    assert (settings["training"]["seed"], settings["training"]["seq_length"]) == (5, 32)
    assert settings["model"] == {"preset": "tiny"}
    run.write_text("optimizer: {lr: fast}\n")
    with pytest.raises(ConfigError, match=rf"optimizer\.lr=fast: .*\({run}:1\)"):
        load_config([cluster, run])


def test_recipes_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"recipe:{name}" for name in recipes()]
    assert main(["recipes", "--copy", str(tmp_path / "mine")]) == 0
    copied = capsys.readouterr().out.splitlines()
    assert [Path(line).read_bytes() for line in copied] == [path.read_bytes() for path in recipes().values()]
    (tmp_path / "mine" / "qwen-7b.yaml").write_text("mine")
    assert main(["recipes", "--copy", str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine" / "qwen-7b.yaml").read_text() == "mine"
