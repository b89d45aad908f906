"""Going on with other data, or with the same data in another order, is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.checkpoint.state import CheckpointState, config_sections
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.data.pretraining.dataset import BlendedDataset
from qwen_megatron.errors import ChangesRefused
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.changes import Change, check_changes
from qwen_megatron.train.state import TrainState
from tests.support.corpora import write_byte_corpus

FOLDER = Path("run/iter_0000100")
CONSUMED = 800


@pytest.fixture(scope="module")
def two(byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"one": byte_corpus, "two": write_byte_corpus(tmp_path_factory.mktemp("two") / "bytes", num_documents=12)}


def resolved_config(blend: str, *overrides: str) -> ResolvedConfig:
    given = [
        "parallel.platform=cpu",
        "model.preset=tiny",
        "model.vocab_size=257",
        "training.seq_length=64",
        "data.eval_samples=8",
    ]
    return resolve(load_config(None, [*given, f"data.blend={blend}", *overrides]))


def saved_by(config: ResolvedConfig) -> CheckpointState:
    """What a run saves after 800 samples."""
    dataset = open_blend(config)
    data = dataset.sources(CONSUMED)
    state = TrainState(iteration=100, consumed_samples=CONSUMED, consumed_tokens=CONSUMED * 64)
    return CheckpointState(train_state=state, models={}, config=config_sections(config), data=data, environment={})


def changes(saved: CheckpointState, config: ResolvedConfig, dataset: BlendedDataset | None = None) -> list[Change]:
    """What differs and is allowed when a run goes on with this configuration and these data."""
    sources = (dataset or open_blend(config)).sources(CONSUMED)
    return check_changes(saved, config, sources, FOLDER)


def check(saved: ResolvedConfig, resumed: ResolvedConfig) -> None:
    assert changes(saved_by(saved), resumed) == []


def weighted(two: dict[str, Path], one: float, other: float) -> str:
    return f"{{{two['one']}: {one}, {two['two']}: {other}}}"


def test_the_same_data_goes_on(two: dict[str, Path]) -> None:
    check(resolved_config(weighted(two, 3, 1)), resolved_config(weighted(two, 3, 1)))
    check(resolved_config(f"[{two['one']}]"), resolved_config(f"[{two['one']}]"))


def test_shares_at_another_scale_are_the_same(two: dict[str, Path]) -> None:
    check(resolved_config(weighted(two, 3, 1)), resolved_config(weighted(two, 0.75, 0.25)))


def test_a_moved_corpus_goes_on(two: dict[str, Path], tmp_path: Path) -> None:
    for suffix in ("bin", "idx", "json", "crc"):
        shutil.copy(f"{two['one']}.{suffix}", tmp_path / f"moved.{suffix}")
    check(resolved_config(f"[{two['one']}]"), resolved_config(f"[{tmp_path / 'moved'}]"))


def test_what_does_not_move_the_cursor_may_change(two: dict[str, Path]) -> None:
    blend = weighted(two, 3, 1)
    check(
        resolved_config(
            blend, "training.train_iters=70", "optimizer.lr_decay_iters=50", "training.global_batch_size=8"
        ),
        resolved_config(
            blend,
            "training.train_iters=700",
            "optimizer.lr_decay_iters=50",
            "optimizer.lr_warmup_iters=0",
            "training.global_batch_size=8",
            "training.micro_batch_size=2",
            "data.num_workers=0",
        ),
    )


def test_another_corpus_is_refused(two: dict[str, Path]) -> None:
    with pytest.raises(ChangesRefused) as caught:
        check(resolved_config(f"[{two['one']}]"), resolved_config(f"[{two['two']}]"))
    message = str(caught.value)
    assert message.startswith(f"{FOLDER}: a run goes on with what it was trained with")
    assert f"then but not now: {two['one']} (content " in message
    assert f"now but not then: {two['two']} (content " in message
    assert f"To keep the checkpoint's, give 'data.blend=['{two['one']}']'." in message
    assert "add 'checkpoint.allow_changes=[data.blend]'" in message


def test_another_weight_is_refused(two: dict[str, Path]) -> None:
    with pytest.raises(ChangesRefused, match=r"data\.blend is .*trained with ") as caught:
        check(resolved_config(weighted(two, 3, 1)), resolved_config(weighted(two, 2, 1)))
    assert f"checkpoint.init_from={FOLDER}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [("training.seed", 99, 1234), ("training.seq_length", 32, 64), ("data.eval_samples", 16, 8)],
)
def test_another_order_is_refused(two: dict[str, Path], key: str, value: int, before: int) -> None:
    blend = weighted(two, 3, 1)
    with pytest.raises(ChangesRefused) as caught:
        check(resolved_config(blend), resolved_config(blend, f"{key}={value}"))
    assert f"{key} is {value}, the checkpoint was trained with {before}" in str(caught.value)
    assert "repeated" in str(caught.value)


def test_another_tokenizer_is_refused_even_for_the_same_tokens(two: dict[str, Path]) -> None:
    config = resolved_config(f"[{two['one']}]")
    saved = saved_by(config)
    (entry,) = saved.data.values()
    entry["tokenizer"] = "b" * 64
    # An imported corpus has a tokenizer that is not known.
    assert changes(saved, config) == []

    class Known(BlendedDataset):
        def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
            found = super().sources(consumed_samples)
            return {prefix: {**source, "tokenizer": "a" * 64} for prefix, source in found.items()}

    dataset = open_blend(config)
    known = Known(
        dict(zip(dataset.prefixes, dataset.corpora, strict=True)), None, seq_length=64, seed=1234, eval_samples=8
    )
    with pytest.raises(ChangesRefused, match=r"tokenizer bbbbbbbbbbbb.*tokenizer aaaaaaaaaaaa"):
        changes(saved, config, known)


@pytest.mark.parametrize(
    "change", ["training.seed=99", "training.seq_length=32", "data.eval_samples=16", "optimizer.weight_decay=0.2"]
)
def test_a_change_that_is_named_is_allowed(two: dict[str, Path], change: str) -> None:
    blend = weighted(two, 3, 1)
    key = change.partition("=")[0]
    resumed = resolved_config(blend, change, f"checkpoint.allow_changes=[{key}]")
    (found,) = changes(saved_by(resolved_config(blend)), resumed)
    assert found.key == key
