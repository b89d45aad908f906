"""Reward models: the same on every layout, right about what they have not seen, deaf to what comes after the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.chat.rendered import Rendered
from qwen_megatron.alignment.intervals import wilson_interval
from qwen_megatron.alignment.pairwise_loss import rewards_at
from qwen_megatron.cli.main import main
from qwen_megatron.data.preference.batch import END_INDEX, scored_batch
from qwen_megatron.jobs.reward import corpus_names
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from tests.support.dialogues import preferences, write_preferences
from tests.support.ranks import RankPool
from tests.support.trainables import TinyTrainable, groups_of, tiny_built, tiny_config, weights_of
from tests.support.training import rows, run_job, train_on_ranks

VOCAB, LENGTH = 64, 24
SMALL = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    f"model.vocab_size={VOCAB}",
    "training.precision=fp32",
    "training.seq_length=32",
    "training.micro_batch_size=8",
    "training.global_batch_size=8",
    "optimizer.lr=3e-3",
    "optimizer.lr_warmup_iters=0",
    "data.num_workers=0",
    "logging.tensorboard=false",
)
TP2, SP, PP2 = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preferences(tmp_path_factory.mktemp("pairs") / "planted", 700, VOCAB, LENGTH)


def evaluations(directory: Path) -> list[dict[str, float]]:
    return [row for row in rows(directory) if "eval_loss" in row]


def test_every_layout_trains_alike(ranks: RankPool, pairs: Path) -> None:
    settings = [*SMALL, "training.train_iters=2", "training.micro_batch_size=2", f"data.blend=[{pairs}]"]
    one = train_on_ranks(ranks, 1, [*settings, "training.micro_batch_size=8"], kind="reward")
    for world_size, *layout in ((1,), (2, TP2), (2, TP2, SP), (2, PP2), (2,)):
        for (_, loss, norm), (_, expected, expected_norm) in zip(
            train_on_ranks(ranks, world_size, [*settings, *layout], kind="reward"), one, strict=True
        ):
            assert loss == pytest.approx(expected, rel=1e-5), layout
            assert norm == pytest.approx(expected_norm, rel=1e-5), layout


def test_a_planted_preference_is_learned_and_told_of_each_corpus(ranks: RankPool, pairs: Path, tmp_path: Path) -> None:
    other = write_preferences(tmp_path / "other", 200, VOCAB, LENGTH, seed=9)
    settings = [*SMALL, "training.train_iters=60", "training.eval_interval=60", "data.eval_samples=300"]
    settings += [f"data.blend={{{pairs}: 2, {other}: 1}}", f"checkpoint.directory={tmp_path / 'run'}"]
    ranks.run(1, run_job, kind="reward", overrides=settings)
    before, after = evaluations(tmp_path / "run")
    assert before["accuracy"] < 0.75
    assert after["accuracy"] >= 0.95
    assert "perplexity" not in after, "a loss of pairs has none"
    assert after["pairs"] == 300
    assert after["margin"] > 1
    assert [after["pairs/planted"], after["pairs/other"]] == [200, 100]
    right = 200 * after["accuracy/planted"] + 100 * after["accuracy/other"]
    assert right == pytest.approx(300 * after["accuracy"])
    for of, count in (("", 300), ("/planted", 200), ("/other", 100)):
        low, high = wilson_interval(count * after[f"accuracy{of}"], count)
        assert after[f"accuracy_low{of}"] == pytest.approx(low)
        assert after[f"accuracy_high{of}"] == pytest.approx(high)
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert {"accuracy", "margin"} <= steps[-1].keys()
    assert steps[0]["consumed_tokens"] == 8 * 2 * 32
    assert corpus_names(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "y"]


def test_it_starts_from_a_preference_model_better_than_from_a_language_model(
    ranks: RankPool, pairs: Path, tmp_path: Path
) -> None:
    """The preference model's head comes along; of a language model the head is the seed's, all else its own."""
    few = write_preferences(tmp_path / "few", 140, VOCAB, LENGTH, seed=5)
    (checkpoint,) = ranks.run(1, language_model_job, directory=tmp_path / "language")
    language = tmp_path / "language"
    same, head_is_the_seeds = ranks.run(1, loaded_job, sources=[checkpoint, language])[0]
    assert same
    assert head_is_the_seeds
    ranks.run(
        1,
        run_job,
        kind="reward",
        overrides=[
            *SMALL,
            "training.train_iters=30",
            f"data.blend=[{pairs}]",
            f"checkpoint.init_from={language}",
            f"checkpoint.directory={tmp_path / 'preference'}",
        ],
    )
    found = {}
    for name, source in (("language", language), ("preference", tmp_path / "preference" / "iter_0000030")):
        settings = [*SMALL, "training.train_iters=4", "optimizer.lr=3e-4", "data.eval_samples=100"]
        settings += [f"data.blend=[{few}]", f"checkpoint.init_from={source}"]
        ranks.run(1, run_job, kind="reward", overrides=[*settings, f"checkpoint.directory={tmp_path / f'from-{name}'}"])
        found[name] = [row["eval_loss"] for row in evaluations(tmp_path / f"from-{name}")]
    assert found["preference"][0] < 0.5 * found["language"][0], "its head is used"
    assert found["preference"][-1] < 0.5 * found["language"][-1]


def language_model_job(directory: Path) -> Path:
    """Saves a language model that has learned nothing as a Hugging Face folder; its checkpoint."""
    from qwen_megatron.convert.to_hf import to_hf
    from tests.support.saved import save_once

    checkpoint = save_once(directory.with_name("lm-checkpoint"), "training.seed=99", *SMALL)
    to_hf(checkpoint, directory, hf_format=None, overwrite=False)
    return checkpoint


def loaded_job(sources: list[Path]) -> tuple[bool, bool]:
    """Whether a model with a scalar head takes all other weights of each source, and keeps its own head."""
    from qwen_megatron.jobs.resume import start_from_weights

    config = tiny_config(*SMALL)
    with groups_of() as groups:
        language = tiny_built(config, groups)
        start_from_weights(sources[0], language)
        expected = {name: weight.clone() for name, weight in weights_of(language).items()}
        fresh = weights_of(tiny_built(config, groups, head=SCALAR))["output_layer.weight"].clone()
        same = keeps = True
        for source in sources:
            scalar = tiny_built(config, groups, head=SCALAR)
            start_from_weights(source, scalar)
            for name, weight in weights_of(scalar).items():
                if name == "output_layer.weight":
                    keeps &= torch.equal(weight, fresh)
                else:
                    same &= torch.equal(weight, expected[name])
        return same, keeps


@pytest.fixture
def scored() -> Iterator[TinyTrainable]:
    with groups_of() as groups:
        yield tiny_built(tiny_config("model.num_layers=2", "training.seq_length=32"), groups, head=SCALAR)


def rewards(trainable: TinyTrainable, *dialogues: Rendered) -> torch.Tensor:
    count = len(dialogues)
    batch = scored_batch(dialogues, range(count), 48, ends_of_turn=[VOCAB - 1] * count, corpora=[0] * count)
    with torch.no_grad():
        scalars = trainable.models[0].eval()(
            batch.tokens_bs, batch.position_ids_bs, None, HeadRequest(output=Output.SCALARS)
        )
    return rewards_at(scalars, batch.extras[END_INDEX])


def test_what_comes_after_the_answer_has_no_say(scored: TinyTrainable) -> None:
    whole = next(preferences(1, VOCAB, LENGTH))
    question = [VOCAB - 2, 5, 6, VOCAB - 1]
    with_junk, with_turn = (
        Rendered(
            tokens=np.append(whole.tokens, np.array(more, dtype=np.int32)),
            targets=np.append(whole.targets, [False] * len(more)),
        )
        for more in ([7, VOCAB - 1, VOCAB - 1], question)
    )
    earlier = dataclasses.replace(
        whole,
        tokens=np.append(np.array(question, dtype=np.int32), whole.tokens),
        targets=np.append([False] * len(question), whole.targets),
    )
    plain, junk, turn, other = rewards(scored, whole, with_junk, with_turn, earlier).tolist()
    assert junk == turn == plain
    assert other != plain, "the test would not notice a head that reads nothing"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parallel.context_parallel_size=2"],
            "parallel.context_parallel_size=2: must be 1 for a reward model, whose rewards are read from whole",
        ),
        (["training.train_iters=3", "training.train_epochs=2"], "training.train_epochs=2: cannot be combined with"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    overrides: list[str], message: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, f"data.blend=[{pairs}]", f"checkpoint.directory={tmp_path}", *overrides]
    assert main(["reward", *settings, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_epochs_are_as_many_steps_as_the_corpora_need(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """700 pairs, 100 of them held out, twice, 8 at a time; the schedule follows."""
    settings = [*SMALL, f"data.blend=[{pairs}]", f"checkpoint.directory={tmp_path}", "data.eval_samples=100"]
    assert main(["reward", *settings, "training.train_epochs=2", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "150 of 150 steps" in told
    assert "0.0003 at step 150" in told
    assert "a scalar head" in told
    assert "8 pairs of 32 tokens" in told
    assert main(["show-config", "reward", *settings, "training.train_epochs=2"]) == 0
    assert "num_steps: null" in capsys.readouterr().out
