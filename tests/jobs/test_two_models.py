"""Two models of different objectives in one job: trained, saved by name, killed, and resumed bitwise."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.checkpoint.state import CheckpointState, saved_model_config
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.errors import CheckpointError
from tests.jobs.two_models import KILL, train_two
from tests.support.launch import ForkedAgent
from tests.support.ranks import RankFailed, RankPool
from tests.support.training import SMALL, as_after, pretrain_job, rows

TP2_SP_PP2 = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=2",
    "parallel.sequence_parallel=true",
)
STEPS = (*SMALL, "training.train_iters=8", "data.eval_samples=0", "checkpoint.save_interval=2")
MEASURED = ("loss", "grad_norm", "critic/loss", "critic/grad_norm", "distance")


def settings(corpus: Path, directory: Path, *others: str) -> list[str]:
    """A hash of the weights of both models at every step."""
    run = (f"data.blend=[{corpus}]", f"checkpoint.directory={directory}", "logging.replica_check_interval=1")
    return [*STEPS, *run, *others]


def steps_of(directory: Path) -> list[dict[str, Any]]:
    return [row for row in rows(directory) if "loss" in row]


def hashes(directory: Path) -> list[str]:
    return [row["parameter_hash"] for row in rows(directory) if "parameter_hash" in row]


def torchrun(overrides: Sequence[str], log: Path, kill: str = "") -> tuple[int | None, str]:
    """The job on four ranks, started again once if a rank is killed; exit status and output."""
    agent = ForkedAgent(
        ["--standalone", "--nproc-per-node", "4", "--max-restarts", "1"],
        train_two,
        overrides,
        log=log,
        environment=os.environ | {KILL: kill, "OMP_NUM_THREADS": "1"},
        directory=log.parent,
    )
    output = agent.output(timeout=400)
    return agent.returncode, output


@pytest.fixture(scope="module")
def undisturbed(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both models at TP2 x SP x PP2."""
    directory = tmp_path_factory.mktemp("two") / "whole"
    ranks.run(4, train_two, overrides=settings(byte_corpus, directory, *TP2_SP_PP2))
    return directory


def test_both_models_learn(undisturbed: Path) -> None:
    first, *_, last = steps_of(undisturbed)
    assert last["loss"] < first["loss"] - 0.05
    assert last["critic/loss"] < 0.5 * first["critic/loss"]
    assert last["distance"] < first["distance"]


def test_a_killed_job_resumes_both_models_bitwise(byte_corpus: Path, tmp_path: Path, undisturbed: Path) -> None:
    overrides = settings(byte_corpus, tmp_path / "run", *TP2_SP_PP2)
    status, output = torchrun(overrides, tmp_path / "log", kill="3:5")
    assert status == 0, output
    assert output.count("going on from") == 1, output
    killed, whole = steps_of(tmp_path / "run"), steps_of(undisturbed)
    assert [row["step"] for row in killed] == list(range(1, 9))
    for row, expected in zip(killed, whole, strict=True):
        assert {name: row[name].hex() for name in MEASURED} == {name: expected[name].hex() for name in MEASURED}
    assert hashes(tmp_path / "run") == hashes(undisturbed)
    # What the job itself had saved: the steps of all starts.
    assert [row["steps"] for row in killed] == [row["steps"] for row in whole] == list(range(1, 9))


def test_the_layout_changes_neither_model(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, undisturbed: Path
) -> None:
    ranks.run(1, train_two, overrides=settings(byte_corpus, tmp_path / "one"))
    for row, expected in zip(steps_of(tmp_path / "one"), steps_of(undisturbed), strict=True):
        assert {name: row[name] for name in MEASURED} == pytest.approx(
            {name: expected[name] for name in MEASURED}, rel=2e-5
        )


def test_a_checkpoint_of_one_layout_goes_on_in_another(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, undisturbed: Path
) -> None:
    directory = as_after(4, undisturbed, tmp_path / "run")
    ranks.run(2, train_two, overrides=settings(byte_corpus, directory))
    for row, expected in zip(steps_of(directory), steps_of(undisturbed), strict=True):
        assert {name: row[name] for name in MEASURED} == pytest.approx(
            {name: expected[name] for name in MEASURED}, rel=2e-5
        )


def test_models_are_found_by_their_names(undisturbed: Path, byte_corpus: Path, tmp_path: Path) -> None:
    folder = undisturbed / "iter_0000008"
    state = CheckpointState.read(folder)
    assert {name: model.head for name, model in state.models.items()} == {
        "model": "language_model",
        "critic": "scalar",
    }
    assert state.job == {"steps": 8}
    # The language model can be exported from beside the other.
    assert CheckpointWeights(folder).model == saved_model_config(folder, "model")
    with pytest.raises(CheckpointError, match="'critic' has a scalar head"):
        CheckpointWeights(folder, "critic")
    with pytest.raises(CheckpointError, match="holds no model 'policy'; it has critic, model"):
        CheckpointWeights(folder, "policy")
    assert json.loads((folder / "state.json").read_text())["version"] == 2


def test_a_checkpoint_of_other_models_is_refused(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """One model's checkpoint is no start for two: the second would begin anew without a word."""
    load = f"checkpoint.load={undisturbed / 'iter_0000008'}"
    with pytest.raises(RankFailed, match="holds the models critic, model, this job has model"):
        ranks.run(1, pretrain_job, overrides=[*settings(byte_corpus, tmp_path / "run"), load])
