"""A rank fails: the first line says where, everybody is gone soon, and a restart that cannot help is refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.faults.job import Job
from tests.faults.sick_worker import Fault

PP2 = "parallel.pipeline_model_parallel_size=2"


@pytest.mark.parametrize(
    ("at", "calls"),
    [
        pytest.param("qwen_megatron.train.step:forward_step", (10,), marks=pytest.mark.faults),
        # In a thread that reads ahead: sample 16 is read for step 5.
        ("qwen_megatron.data.pretraining.dataset:BlendedDataset.tokens", (17,)),
    ],
    ids=["main thread", "loader thread"],
)
def test_an_exception_names_rank_step_phase_and_samples(
    byte_corpus: Path, tmp_path: Path, at: str, calls: tuple[int, ...]
) -> None:
    fault = Fault(rank=1, at=at, calls=calls, do="raise")
    with Job(tmp_path / "run", byte_corpus, 2, PP2, faults=[fault]) as job:
        job.wait_until(lambda: "ArithmeticError" in job.output(), "the exception")
        seen = time.monotonic()
        assert job.wait() == 1
        # Well before any time-out.
        assert time.monotonic() - seen < 20
    said = [line for line in job.output().splitlines() if line.startswith("qwen-megatron: ")]
    position = re.match(
        r"qwen-megatron: rank 1 \(.*, process \d+\): step (\d+), (forward|data), samples (\d+) to (\d+): "
        r"ArithmeticError: a fault of the test",
        said[0],
    )
    assert position is not None, job.output()
    step, first, last = (int(position[number]) for number in (1, 3, 4))
    assert (first, last) == (4 * (step - 1), 4 * step - 1)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["error"], failure["lost_peer"]) == (1, "ArithmeticError", False)


def test_a_reader_that_fails_is_named_and_not_who_waited_for_it(byte_corpus: Path, tmp_path: Path) -> None:
    at = "qwen_megatron.data.pretraining.dataset:BlendedDataset.tokens"
    fault = Fault(rank=0, at=at, calls=(17,), do="raise")
    with Job(tmp_path / "run", byte_corpus, 2, "parallel.tensor_model_parallel_size=2", faults=[fault]) as job:
        job.wait_until(lambda: "ArithmeticError" in job.output(), "the exception")
        seen = time.monotonic()
        assert job.wait() == 1
        assert time.monotonic() - seen < 20
    said = [line for line in job.output().splitlines() if line.startswith("qwen-megatron: ")]
    assert re.match(r"qwen-megatron: rank 0 \(.*\): step \d+, data, .*: ArithmeticError: a fault of the test", said[0])
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["rank"], failure["error"], failure["lost_peer"]) == (0, "ArithmeticError", False)


def test_a_restart_after_nan_is_refused_at_once(byte_corpus: Path, tmp_path: Path) -> None:
    fault = Fault(rank=0, at="qwen_megatron.train.step:squared_gradient_norm", calls=(3,), do="nan")
    with Job(tmp_path / "run", byte_corpus, 2, faults=[fault], max_restarts=2) as job:
        assert job.wait() == 1
    output = job.output()
    # Trained once; every later attempt read the record and nothing else.
    assert output.count("parameters on cpu") == 1, output
    assert output.count("the same start would fail again") == 2
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["error"], failure["restart_helps"], failure["attempt"]) == ("TrainingError", False, 0)
    assert failure["samples"] == [4 * (failure["step"] - 1), 4 * failure["step"] - 1]


def test_a_wrong_configuration_is_printed_once_an_attempt_and_trains_nothing(byte_corpus: Path, tmp_path: Path) -> None:
    """torchrun cannot be told not to start again; every attempt ends by itself within seconds."""
    with Job(tmp_path / "run", byte_corpus, 3, "training.train_itres=5", "optimizer.lr=fast", max_restarts=1) as job:
        assert job.wait() == 1
    output = job.output()
    assert output.count("qwen-megatron: 3 problems in the configuration:") == 2, output
    assert output.count("training.train_itres=5: unknown key; the closest known one is training.train_iters") == 2, (
        output
    )
    assert not (tmp_path / "run").exists()
