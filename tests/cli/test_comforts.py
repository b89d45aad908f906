"""What every command of both programs takes: versions, loudness, examples, hints, answers for scripts."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import data_tools
import qwen_megatron
from data_tools import cli as data_cli
from data_tools.commands.shared_options import apply_loudness
from data_tools.io.progress import shows_progress
from qwen_megatron.cli import check_parity
from qwen_megatron.cli import main as megatron_cli
from qwen_megatron.cli.settings import completions

PROGRAMS = {
    "qwen-megatron": (megatron_cli.main, megatron_cli.build_parser),
    "qwen-data": (data_cli.main, data_cli.build_parser),
}


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    yield
    apply_loudness(argparse.Namespace(quiet=False, verbose=False))


def commands(parser: argparse.ArgumentParser, *path: str) -> list[tuple[str, ...]]:
    """Every command and action as one would type it."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found = [] if not path else [path]
    for action in inner:
        for name, child in action.choices.items():
            found += commands(child, *path, name)
    return found


EVERY_COMMAND = [(program, *path) for program, (_, build) in PROGRAMS.items() for path in commands(build())]


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_every_help_has_examples_and_the_shared_options(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    program, *path = command
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program][0]([*path, "--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out
    assert "examples:\n" in words
    assert f"  {program} " in words.partition("examples:\n")[2] or "torchrun" in words
    # Commands of several actions leave them to these.
    assert ("--quiet" in words and "--verbose" in words) != ("ACTION" in words)


@pytest.mark.parametrize("program", PROGRAMS)
def test_versions_are_those_of_the_distribution(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = metadata.version("qwen-megatron")
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program][0](["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{program} {expected}\n"
    assert data_tools.__version__ == qwen_megatron.__version__ == expected
    with pytest.raises(AttributeError, match="has no attribute 'version'"):
        qwen_megatron.version  # noqa: B018


@pytest.mark.parametrize("package", [data_tools, qwen_megatron])
def test_packages_say_that_they_are_typed(package: Any) -> None:
    assert (Path(package.__file__).parent / "py.typed").is_file()
    assert "py.typed" in (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("program", "given", "said"),
    [
        ("qwen-megatron", "pretrian", "pretrian: no such command; did you mean pretrain?"),
        ("qwen-megatron", "show_config", "show_config: no such command; did you mean show-config?"),
        ("qwen-megatron", "zzz", "zzz: no such command; the commands are launch, pretrain, sft, reward, ppo, recipes,"),
        ("qwen-data", "verfy", "verfy: no such command; did you mean verify?"),
        ("qwen-data", "tokenise", "tokenise: no such command; did you mean tokenize?"),
    ],
)
def test_a_typo_names_the_command(program: str, given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program][0]([given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--lr", "1e-3"], "optimizer.lr=1e-3?"),
        (["--lr=1e-3"], "optimizer.lr=1e-3?"),
        (["--optimizer.lr", "1e-3"], "optimizer.lr=1e-3?"),
        (["--global-batch-size", "8"], "training.global_batch_size=8?"),
        (["--train-iter", "8"], "training.train_iters=8?"),
        (["--lr"], "optimizer.lr=VALUE?"),
        (["--seed", "--dry-run"], "training.seed=VALUE?"),
    ],
)
def test_an_option_that_is_a_setting_says_how(given: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("pretrain", "show-config"):
        with pytest.raises(SystemExit) as ended:
            megatron_cli.main([command, "model.preset=tiny", *given])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert f"did you mean {meant}" in error
    with pytest.raises(SystemExit):
        megatron_cli.main(["show-config", "--frobnicate", "1"])
    assert "did you mean" not in capsys.readouterr().err


def test_quiet_and_verbose_hold_for_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("qwen_megatron.somewhere")
    assert megatron_cli.main(["show-config", "--quiet", "model.preset=tiny"]) == 0
    assert not shows_progress()
    assert not log.isEnabledFor(logging.INFO)
    assert log.isEnabledFor(logging.WARNING)
    assert megatron_cli.main(["show-config", "--verbose", "model.preset=tiny"]) == 0
    assert shows_progress()
    assert log.isEnabledFor(logging.DEBUG)
    assert megatron_cli.main(["show-config", "model.preset=tiny"]) == 0
    assert shows_progress()
    assert log.level == logging.getLogger("qwen_megatron").level == logging.NOTSET
    with pytest.raises(SystemExit):
        megatron_cli.main(["show-config", "--quiet", "--verbose"])
    assert "not allowed with argument" in capsys.readouterr().err


# For scripts


def test_show_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert megatron_cli.main(["show-config", "model.preset=tiny", "data.eval_blend=[a/b]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["num_layers"] == found["derived"]["layers_per_stage"][0]
    assert found["data"]["eval_blend"] == {"b": ["a/b"]}


def test_verify_as_json(code_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["verify", str(code_corpus), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_whole"]
    assert found["tokens"] > found["documents"] > 0
    assert data_cli.main(["verify", str(tmp_path / "none"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert not json.loads(out)["is_whole"]
    assert str(tmp_path / "none") in json.loads(out)["problems"][0]
    assert err == ""


def test_check_parity_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    reference = [(2.0, 1.0), (1.5, 0.5)]
    assert check_parity.report_json({"one process": reference, "tp2": [(2.0, 1.0), (1.5001, 0.5)]}) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert not found["layouts"]["tp2"]["agrees"]
    assert found["layouts"]["tp2"]["loss"] == pytest.approx(1e-4 / 1.5)
    assert check_parity.report_json({"one process": reference, "tp2": reference}) == 0


# Completion


def test_shells_are_answered_where_argcomplete_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[argparse.ArgumentParser] = []
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=asked.append))
    arguments = ["show-config", "model.preset=tiny", "--json"]
    assert megatron_cli.main(arguments) == 0
    assert [parser.prog for parser in asked] == ["qwen-megatron"]
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert megatron_cli.main(arguments) == 0


def test_settings_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completions("optimizer.lr_d") == ["optimizer.lr_decay_iters=", "optimizer.lr_decay_style="]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("reci") == ["recipe.yaml", "recipes/"]


def test_the_version_needs_nothing_heavy() -> None:
    code = "import qwen_megatron, sys; qwen_megatron.__version__; assert 'torch' not in sys.modules, 'torch'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
