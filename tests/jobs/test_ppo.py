"""PPO as a job: on every layout the same, killed and resumed bitwise, the policy untouched in the warm-up."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_megatron.checkpoint.state import CheckpointState
from qwen_megatron.cli.main import main
from qwen_megatron.train.run import Hook, Run, StepRecord
from tests.jobs.ppo_run import KILL, run_ppo
from tests.support.launch import ForkedAgent
from tests.support.ranks import RankFailed, RankPool
from tests.support.toy_alignment import TOY, VOCAB, ppo_settings, save_models, write_queries, write_text
from tests.support.training import rows

TP2_SP, PP2 = (
    ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"),
    ("parallel.pipeline_model_parallel_size=2",),
)
# Half of four queries for each of two replicas: minibatches are the same.
DP2 = ("training.micro_batch_size=2",)
# Two of the warm-up and two after it; two micro-batches fill a pipeline of two stages.
FEW_STEPS = ("training.train_iters=4", "training.micro_batch_size=4")
MEASURED = (
    *("loss", "grad_norm", "reward", "reward_error", "kl", "entropy", "response_length", "truncated"),
    *("value_loss", "value_grad_norm", "value_error", "ratio", "approximate_kl", "pretraining_loss"),
)


@dataclass(frozen=True)
class Toy:
    """What runs start from."""

    queries: Path
    text: Path
    policy: Path
    reward: Path

    def settings(self, directory: Path, *others: str) -> list[str]:
        text = (f"ppo.pretraining_blend=[{self.text}]", "ppo.pretraining_ratio=1", "logging.replica_check_interval=1")
        return ppo_settings(
            self.queries, self.policy, self.reward, directory, *FEW_STEPS, "data.eval_samples=5", *text, *others
        )


@pytest.fixture(scope="module")
def toy(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    policy, reward, _ = save_models(ranks, folder)
    return Toy(write_queries(folder / "queries"), write_text(folder / "text"), policy, reward)


@pytest.fixture(scope="module")
def one(ranks: RankPool, toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on one process."""
    directory = tmp_path_factory.mktemp("ppo") / "one"
    ranks.run(1, run_ppo, overrides=toy.settings(directory))
    return directory


@pytest.fixture(scope="module")
def staged(ranks: RankPool, toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on two pipeline stages."""
    directory = tmp_path_factory.mktemp("ppo") / "staged"
    ranks.run(2, run_ppo, overrides=toy.settings(directory, *PP2))
    return directory


def numbers(directory: Path) -> list[dict[str, float]]:
    """What each step and evaluation measured."""
    return [{name: row[name] for name in MEASURED if name in row} for row in rows(directory) if "reward" in row]


def exactly(directory: Path) -> list[tuple[Any, ...]]:
    """The same bit by bit, with the hash of all weights of both models after each step."""
    found = [tuple(value.hex() for value in row.values()) for row in numbers(directory)]
    return [*found, *((row["step"], row["parameter_hash"]) for row in rows(directory) if "parameter_hash" in row)]


def samples(directory: Path) -> list[list[int]]:
    return [json.loads(line)["response"] for line in (directory / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", [TP2_SP, DP2], ids=["tp2-sp", "dp2"])
def test_the_layout_changes_nothing(
    ranks: RankPool, toy: Toy, tmp_path: Path, one: Path, layout: tuple[str, ...]
) -> None:
    ranks.run(2, run_ppo, overrides=toy.settings(tmp_path / "run", *layout))
    check_alike(tmp_path / "run", one)


def test_stages_change_nothing(staged: Path, one: Path) -> None:
    check_alike(staged, one)


def check_alike(directory: Path, expected: Path) -> None:
    """Every number of every step to 1e-4, and the same tokens."""
    found = numbers(directory)
    assert len(found) == 6
    for row, other in zip(found, numbers(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    # As many as rank 0 writes: the first responses of the last step.
    assert samples(directory) == samples(expected)
    assert len(samples(expected)) == 4
    assert all(0 <= token < VOCAB for response in samples(expected) for token in response)


def test_a_job_killed_in_the_warm_up_resumes_bitwise(toy: Toy, tmp_path: Path, staged: Path) -> None:
    agent = ForkedAgent(
        ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"],
        run_ppo,
        toy.settings(tmp_path / "run", *PP2, "checkpoint.save_interval=1"),
        log=tmp_path / "log",
        environment=os.environ | {KILL: "1:2", "OMP_NUM_THREADS": "1"},
        directory=tmp_path,
    )
    output = agent.output(timeout=400)
    assert agent.returncode == 0, output
    assert output.count("going on from") == 1, output
    assert exactly(tmp_path / "run") == exactly(staged)
    assert samples(tmp_path / "run") == samples(staged)


def test_a_job_goes_on_bitwise_after_the_warm_up(ranks: RankPool, toy: Toy, tmp_path: Path, one: Path) -> None:
    """With the same frozen models, wherever they lie; with others it does not go on."""
    moved = tmp_path / "moved"
    shutil.copytree(toy.reward, moved)
    ranks.run(1, run_ppo, overrides=toy.settings(tmp_path / "run", "training.exit_iter=3"))
    state = CheckpointState.read(tmp_path / "run" / "iter_0000003")
    assert {name: model.head for name, model in state.models.items()} == {"model": "language_model", "value": "scalar"}
    assert state.job["scores"]["count"] == 3 * 16
    # Two policy updates a step of 8 sequences of text, in the step after the warm-up.
    assert {name: source["consumed_samples"] for name, source in state.data.items()} == {
        str(toy.queries): 24,
        str(toy.text): 16,
    }
    other = f"ppo.reference_model={one / 'iter_0000004'}"
    with pytest.raises(RankFailed, match=r"ppo\.reference_model: holds other weights"):
        ranks.run(1, run_ppo, overrides=toy.settings(tmp_path / "run", other))
    ranks.run(1, run_ppo, overrides=toy.settings(tmp_path / "run", f"ppo.reward_model={moved}"))
    # The end of the first part was evaluated besides.
    found, expected = exactly(tmp_path / "run"), exactly(one)
    assert [row for row in found if row in expected] == expected
    assert len(found) == len(expected) + 1


class Weights(Hook):
    """A hash of this rank's policy, masters and moments, after each step."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, run: Run) -> None:
        from tests.support.trainables import parameter_bytes

        content = parameter_bytes(run.trainables["model"])
        self.found.append(hashlib.sha256(b"".join(content[name] for name in sorted(content))).hexdigest())

    def on_start(self, run: Run) -> None:
        self.note(run)

    def on_step(self, run: Run, record: StepRecord) -> None:
        self.note(run)


def watched_job(overrides: list[str]) -> list[str]:
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.ppo import ppo

    weights = Weights()
    ppo(resolve(load_config(None, overrides), 1), [weights])
    return weights.found


def test_the_warm_up_trains_the_value_model_alone(ranks: RankPool, toy: Toy, tmp_path: Path) -> None:
    warm = ("ppo.value_warmup_iters=6", "training.train_iters=8")
    batch = ("training.global_batch_size=16", "training.micro_batch_size=16")
    (found,) = ranks.run(1, watched_job, overrides=toy.settings(tmp_path / "run", *warm, *batch))
    assert len(set(found[:7])) == 1
    assert len(set(found)) == 3
    values = [row["value_error"] for row in rows(tmp_path / "run") if "value_error" in row]
    assert values[5] < 0.8 * values[0]
    # The policy is the reference as long as it is not trained.
    assert all(row["kl"] == 0.0 for row in rows(tmp_path / "run") if row.get("step", 9) <= 6 and "kl" in row)


def text_loss_job(overrides: list[str], text: str) -> float:
    """Next-token loss of the trained policy on text that it was not trained on."""
    import torch

    from tests.support.toy_alignment import ppo_job

    return float(ppo_job(overrides, functools.partial(loss_on, np.load(text), torch.inference_mode)))


def loss_on(text: np.ndarray, quiet: Any, run: Run) -> float:
    import torch

    (model,) = run.trainables["model"].models
    tokens_bs = torch.from_numpy(text)
    with quiet():
        logits_bsv = model.eval()(tokens_bs[:, :-1], None)
    return torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), tokens_bs[:, 1:].flatten()).item()


def test_pretraining_text_keeps_its_loss_low(ranks: RankPool, toy: Toy, tmp_path: Path) -> None:
    held_out = np.stack([(np.arange(20) + start) % (VOCAB - 2) + 2 for start in range(50, 60)])
    np.save(tmp_path / "text.npy", held_out)
    losses = {}
    for coefficient in (0, 1):
        run = toy.settings(
            tmp_path / f"run{coefficient}",
            f"ppo.pretraining_coefficient={coefficient}",
            "ppo.value_warmup_iters=0",
            "training.train_iters=5",
            "training.micro_batch_size=8",
            "optimizer.lr=3e-3",
            "data.eval_samples=0",
        )
        (losses[coefficient],) = ranks.run(1, text_loss_job, overrides=run, text=str(tmp_path / "text.npy"))
    assert losses[1] < losses[0] - 0.3


def test_the_command_checks_everything_first(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run says what there is to learn from; what does not fit is said at once, by the setting's name."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    settings = toy.settings(tmp_path / "run")
    assert main(["ppo", *settings, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "59 queries; 5 held out; 0 left out, longer than 8 tokens" in told
    assert "policy, value, reference and reward model in memory; work of a step: rollout" in told
    assert "a new run with the weights of" in told
    wrong = {
        f"ppo.reward_model={toy.policy}": "has no reward model",
        f"ppo.reference_model={toy.reward}": "scalar",
        f"data.blend=[{toy.text}]": "is a corpus of text, not of prompts",
        f"ppo.pretraining_blend=[{toy.queries}]": "is a corpus of prompts, not of text",
        "ppo.response_length=18": "holds 0 queries of at most",
    }
    for override, message in wrong.items():
        assert main(["ppo", *settings, override, "--dry-run"]) == 2, override
        assert message in capsys.readouterr().err, override
    assert main(["pretrain", *settings, "--dry-run"]) == 2
    assert str(toy.queries) in capsys.readouterr().err


def test_the_recipe_dry_runs(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model as small as the checkpoints are."""
    small = [setting for setting in TOY if setting.startswith(("model.", "parallel."))]
    sources = [f"data.blend=[{toy.queries}]", f"checkpoint.init_from={toy.policy}", f"ppo.reward_model={toy.reward}"]
    settings = ["recipe:ppo-7b", *small, *sources, "data.eval_samples=4", f"checkpoint.directory={tmp_path}"]
    assert main(["ppo", *settings, "--dry-run"]) == 0, capsys.readouterr().err
    assert "8 processes: tensor 4 x pipeline 1 x data 2" in capsys.readouterr().out


def test_frozen_models_may_take_turns_in_one_place(ranks: RankPool, toy: Toy, tmp_path: Path, one: Path) -> None:
    ranks.run(1, run_ppo, overrides=toy.settings(tmp_path / "run", "ppo.share_frozen_model=true"))
    assert exactly(tmp_path / "run") == exactly(one)
