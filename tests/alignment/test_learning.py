"""PPO learns what a learned reward model likes, and stays near its reference as the price of leaving it says.

One seed, short, in every run of the tests; three seeds and the order of divergences with `make test-align`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.train.run import Hook, Run, StepRecord
from tests.support.ranks import RankPool
from tests.support.toy_alignment import ppo_settings, save_models, worth, write_queries

# The paper's price of divergence, top-p and clip of values are the defaults; rates are raised for a model this small.
LEARNING = (
    "training.global_batch_size=16",
    "training.micro_batch_size=16",
    "ppo.num_minibatches=1",
    "ppo.num_epochs=2",
    "optimizer.lr=3e-3",
    "ppo.value_lr=3e-3",
)


class Worth(Hook):
    """The planted worth of each step's responses, and their divergence."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def on_step(self, run: Run, record: StepRecord) -> None:
        rows = run.job.rows  # type: ignore[attr-defined]
        responses = [labels[mask > 0].tolist() for labels, mask in zip(rows.labels_bs, rows.loss_mask_bs, strict=True)]
        self.found.append((sum(map(worth, responses)) / len(responses), record.metrics["kl"]))


def learning_job(overrides: list[str]) -> list[tuple[float, float]]:
    import torch

    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.ppo import ppo

    torch.set_num_threads(1)
    worths = Worth()
    ppo(resolve(load_config(None, overrides), 1), [worths])
    return worths.found


def learned(
    ranks: RankPool,
    folder: Path,
    *,
    seed: int,
    steps: int,
    warm_up: int,
    reward_steps: int,
    price: float = 0.04,
    normalization: str = "mean",
) -> tuple[float, float, float]:
    """Worth of responses at the start (mean of the warm-up) and at the end (last 5 steps), and divergence (last 20)."""
    policy, reward, accuracy = save_models(ranks, folder, seed=seed, reward_steps=reward_steps)
    assert accuracy > 0.8
    overrides = ppo_settings(
        write_queries(folder / "queries", 256, seed),
        policy,
        reward,
        folder / "run",
        *LEARNING,
        f"training.train_iters={steps}",
        f"ppo.value_warmup_iters={warm_up}",
        f"training.seed={seed}",
        f"ppo.kl_coefficient={price}",
        f"ppo.reward_normalization={normalization}",
    )
    (found,) = ranks.run(1, learning_job, overrides=overrides)
    worths, divergences = zip(*found, strict=True)
    return sum(worths[:warm_up]) / warm_up, sum(worths[-5:]) / 5, sum(divergences[-20:]) / 20


def test_a_planted_reward_is_learned_through_a_learned_reward_model(ranks: RankPool, tmp_path: Path) -> None:
    start, end, _ = learned(ranks, tmp_path, seed=1234, steps=28, warm_up=4, reward_steps=80)
    assert 0.2 < start < 0.32
    assert end >= max(0.6, 2 * start)


@pytest.mark.align
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_seed_learns_it(ranks: RankPool, tmp_path: Path, seed: int) -> None:
    start, end, _ = learned(ranks, tmp_path, seed=seed, steps=70, warm_up=10, reward_steps=150)
    assert end >= max(0.6, 2 * start)


@pytest.mark.align
def test_a_higher_price_keeps_the_policy_nearer(ranks: RankPool, tmp_path: Path) -> None:
    # In units of the rewards' deviation: how far the scores of a reward model lie apart, and how much divergence they
    # are worth at a price, grows with its training.
    divergences = {
        price: learned(
            ranks,
            tmp_path / str(price),
            seed=1,
            steps=70,
            warm_up=10,
            reward_steps=150,
            price=price,
            normalization="mean_std",
        )[2]
        for price in (0.04, 0.5)
    }
    assert 0 < divergences[0.5] < divergences[0.04] / 4
