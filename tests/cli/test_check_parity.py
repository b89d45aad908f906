"""Parity of a recipe: layouts compared by real runs under torchrun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from qwen_megatron.cli.check_parity import report
from qwen_megatron.cli.main import main
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs import parity
from qwen_megatron.jobs.parity import Layout, parse_layout
from tests.support.launch import ForkedAgent, product


def test_layouts_are_read() -> None:
    assert parse_layout("tp2-sp-pp2-vpp2-dp3") == Layout(
        name="tp2-sp-pp2-vpp2-dp3",
        world_size=12,
        overrides=(
            "parallel.tensor_model_parallel_size=2",
            "parallel.sequence_parallel=true",
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
        ),
    )


@pytest.mark.parametrize("text", ["tp", "tp0", "ep2", "", "tp2_pp2"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be sp, or tp, pp, vpp, cp or dp with a size"):
        parse_layout(text)


def test_a_difference_beyond_the_tolerance_fails(capsys: pytest.CaptureFixture[str]) -> None:
    reference = [(2.0, 1.0), (1.5, 0.5)]
    assert report({"one process": reference, "tp2": [(2.0, 1.0), (1.5, 0.500001)]}) == 0
    assert report({"one process": reference, "tp2": [(2.0, 1.0), (1.5001, 0.5)]}) == 1
    assert "NO" in capsys.readouterr().out


def test_a_layout_that_does_not_fit_is_found_before_anything_runs(
    code_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["parallel.platform=cpu", "model.preset=tiny", f"data.blend=[{code_corpus}]", "training.train_iters=10"]
    assert main(["check-parity", *settings, "--layouts", "tp2,tp3"]) == 2
    output = capsys.readouterr().err
    assert "layout tp3: parallel.tensor_model_parallel_size=3: must divide" in output
    assert "training" not in output.splitlines()[0]


def test_layouts_of_a_recipe_agree(
    byte_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launches: list[int] = []

    def run_forked(
        command: Sequence[str], *, env: Mapping[str, str], capture_output: bool, text: bool, check: bool
    ) -> subprocess.CompletedProcess[str]:
        """The launch that was asked for, without its imports; tests/jobs/test_loopback.py launches in the usual way."""
        assert capture_output
        assert text
        assert not check
        split = command.index("qwen_megatron")
        launcher, arguments = command[: split - 1], command[split + 1 :]
        assert launcher[:3] == [sys.executable, "-m", "qwen_megatron.parallel.loopback"]
        log = tmp_path / f"{len(launches)}.log"
        options = launcher[3:]
        agent = ForkedAgent(options, product, arguments, log=log, environment=env, directory=tmp_path, on_loopback=True)
        output = agent.output(timeout=300)
        launches.append(int(launcher[-1]))
        return subprocess.CompletedProcess(list(command), agent.returncode or 0, output, "")

    monkeypatch.setattr(parity.subprocess, "run", run_forked)
    # A small model and one step: how far layouts agree is the parity test's question, here the command is tested.
    settings = [
        "parallel.platform=cpu",
        "model.preset=tiny",
        "model.num_layers=2",
        "model.vocab_size=257",
        "training.seq_length=64",
        "training.global_batch_size=2",
        f"data.blend=[{byte_corpus}]",
        "training.train_iters=10",
        "parallel.threads=1",
    ]
    assert main(["check-parity", *settings, "--layouts", "tp2-sp", "--steps", "1"]) == 0
    assert launches == [1, 2]
    output = capsys.readouterr().out
    assert "tp2-sp" in output
    assert "yes" in output
