"""A toy of alignment: a vocabulary of 64 tokens, queries of a few, and a preference that can be counted.

Liked are the ids of a quarter of the vocabulary: what a response is worth is the share of them among its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools.chat.chat_writer import write_chat_corpus
from data_tools.chat.rendered import Rendered
from qwen_megatron.alignment.pairwise_loss import PairwiseLoss, pair_margins, rewards_at
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import CORPUS, END_INDEX
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL, SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.train.job import Job, StepOutcome
from qwen_megatron.train.run import Run
from qwen_megatron.train.state import TrainState
from tests.support.ranks import RankPool

VOCAB, END = 64, 1
LIKED = range(48, 64)
QUERY, RESPONSE = 8, 12
LENGTH = QUERY + RESPONSE
TOY = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.ffn_hidden_size=128",
    "model.num_attention_heads=4",
    f"model.vocab_size={VOCAB}",
    "training.precision=fp32",
    "training.seed=1234",
    f"training.seq_length={LENGTH}",
    "training.micro_batch_size=2",
    "training.global_batch_size=8",
    "training.train_iters=4",
    "optimizer.lr=1e-3",
    "optimizer.lr_warmup_iters=0",
    "optimizer.lr_decay_style=constant",
    "data.num_workers=0",
    "checkpoint.save_interval=1000",
    "checkpoint.async_save=false",
    "logging.tensorboard=false",
    f"ppo.response_length={RESPONSE}",
    "ppo.value_warmup_iters=2",
    "ppo.value_lr=1e-3",
    "ppo.num_minibatches=2",
)


def worth(response: Sequence[int]) -> float:
    """Share of liked tokens; the one that ends the turn is not counted."""
    tokens = [token for token in response if token != END]
    return sum(token in LIKED for token in tokens) / max(len(tokens), 1)


def write_queries(prefix: Path, count: int = 64, seed: int = 0) -> Path:
    """A corpus of prompts of 3 to 8 tokens."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = generator.integers(2, VOCAB, size=generator.integers(3, QUERY + 1)).astype(np.int32)
        documents.append(Rendered(tokens=tokens, targets=np.zeros(len(tokens), dtype=np.bool_)))
    write_chat_corpus(prefix, documents, kind="prompts", end_of_turn=END)
    return prefix


def write_text(prefix: Path, count: int = 40) -> Path:
    """A corpus of text in which every token is the one after the token before."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from data_tools.corpus.import_corpus import import_corpus

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for start in range(count):
        tokens = ((np.arange(48) + start) % (VOCAB - 2) + 2).astype(np.int32)
        builder.add_document(np.append(tokens, 0).astype(np.int32), [len(tokens) + 1])
    builder.finalize(f"{prefix}.idx")
    import_corpus(prefix, end_of_document=0)
    return prefix


def pairs(generator: np.random.Generator, count: int) -> Batch:
    """Pairs of texts of random lengths and shares of liked tokens, the better one first."""
    rows, ends = np.zeros((2 * count, LENGTH), dtype=np.int64), []
    for k in range(count):
        found: list[tuple[float, list[int]]] = []
        # Texts of nearly the same worth are no pair.
        while len(found) < 2 or abs(found[0][0] - found[1][0]) < 0.05:
            found = found[-1:]
            liking, query = generator.random(), generator.integers(2, VOCAB, size=generator.integers(3, QUERY + 1))
            size = generator.integers(3, RESPONSE + 1)
            liked = generator.integers(LIKED.start, LIKED.stop, size=size)
            other = generator.integers(2, LIKED.start, size=size)
            response = np.where(generator.random(size) < liking, liked, other)
            found.append((worth(list(response)), [*query, *response, *([END] if size < RESPONSE else [])]))
        for row, (_, text) in enumerate(sorted(found, key=lambda one: -one[0])):
            rows[2 * k + row, : len(text)] = text
            ends.append(len(text) - 1)
    tokens_bs = torch.from_numpy(rows)
    return Batch(
        tokens_bs=tokens_bs,
        labels_bs=tokens_bs,
        loss_mask_bs=torch.ones(tokens_bs.shape),
        position_ids_bs=torch.arange(LENGTH).expand_as(tokens_bs),
        document_ids_bs=None,
        samples=(None,) * (2 * count),
        extras={END_INDEX: torch.tensor(ends), CORPUS: torch.zeros(2 * count, dtype=torch.int64)},
    )


class Saved(Job):
    """A job that is only there to be saved."""

    def __init__(self, config: Any):
        self.config = config

    def num_steps(self, state: TrainState) -> int:
        return 1

    def samples_of(self, state: TrainState, steps: int) -> int:
        return 0

    def step(self, run: Run) -> StepOutcome:
        raise NotImplementedError


def save_model_job(directory: str, head: str, seed: int, steps: int, overrides: list[str]) -> float:
    """A checkpoint of one model; one with a scalar head learns the preference first. Returns its held-out accuracy."""
    from qwen_megatron.checkpoint.retention import Retention
    from qwen_megatron.checkpoint.save import Saver
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.data.protocol import BatchShape
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.optimizer import allocate_moments
    from qwen_megatron.train.step import train_step
    from qwen_megatron.train.step_timers import StepTimers
    from qwen_megatron.train.trainable import MAIN, build_trainable
    from tests.support.trainables import groups_of

    torch.set_num_threads(1)
    config = resolve(load_config(None, overrides), 1)
    Path(directory).mkdir(parents=True)
    with groups_of() as groups:
        trainable = build_trainable(config, groups, get_platform("cpu"), head=head, seed=seed)
        allocate_moments(trainable.trained)
        generator = np.random.default_rng(seed)
        for step in range(steps):
            train_step(
                trainable,
                PairwiseLoss(),
                iter([pairs(generator, 16)]),
                shape=BatchShape(micro_batch_size=32, seq_length=LENGTH),
                num_microbatches=1,
                step=step + 1,
                learning_rate=3e-3,
                clip_grad=1.0,
            )
        accuracy = 0.0
        if head == SCALAR:
            batch = pairs(np.random.default_rng(10_000 + seed), 256)
            with torch.no_grad():
                scalars_bs = trainable.models[0].eval()(batch.tokens_bs, None, None, HeadRequest(output=Output.SCALARS))
            accuracy = float((pair_margins(rewards_at(scalars_bs, batch.extras[END_INDEX])) > 0).float().mean())
        run = Run(
            job=Saved(config),
            directory=Path(directory),
            groups=groups,
            platform=get_platform("cpu"),
            timers=StepTimers(),
            trainables={MAIN: trainable},
            state=TrainState(iteration=1),
        )
        saver = Saver(asynchronous=False, retention=Retention())
        saver.save(run)
        saver.finish(run)
        saver.close()
    return accuracy


def save_models(
    ranks: RankPool, folder: Path, *, seed: int = 1234, reward_steps: int = 0, overrides: Sequence[str] = TOY
) -> tuple[Path, Path, float]:
    """Checkpoints of a fresh language model and of a reward model, and the reward model's held-out accuracy."""
    found = []
    for name, head, steps in (("policy", LANGUAGE_MODEL, 0), ("reward", SCALAR, reward_steps)):
        (accuracy,) = ranks.run(
            1,
            save_model_job,
            directory=str(folder / name),
            head=head,
            seed=seed + steps,
            steps=steps,
            overrides=list(overrides),
        )
        found.append(folder / name / "iter_0000001")
    return found[0], found[1], accuracy


def ppo_job(overrides: list[str], look: Callable[[Run], Any] | None = None) -> Any:
    """What `qwen-megatron ppo KEY=VALUE...` does after the checks, on one rank; then what `look` sees."""
    import os

    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.ppo import ppo
    from qwen_megatron.train.run import Hook

    seen: list[Any] = []

    class Look(Hook):
        def on_end(self, run: Run) -> None:
            if look is not None:
                seen.append(look(run))

    torch.set_num_threads(1)
    ppo(resolve(load_config(None, overrides), int(os.environ["WORLD_SIZE"])), [Look()])
    return seen[0] if seen else None


def ppo_settings(queries: Path, policy: Path, reward: Path, directory: Path, *others: str) -> list[str]:
    """Settings of a run."""
    return [
        *TOY,
        f"data.blend=[{queries}]",
        f"checkpoint.init_from={policy}",
        f"ppo.reward_model={reward}",
        f"checkpoint.directory={directory}",
        *others,
    ]
