"""What a run says when it goes on with other settings than its checkpoint's."""

from __future__ import annotations

import pytest

from qwen_megatron.checkpoint.state import config_sections
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.changes import changed_settings


def resolved_config(*overrides: str) -> ResolvedConfig:
    return resolve(load_config(None, ["model.preset=tiny", "training.train_iters=100", *overrides]))


def changes(*overrides: str) -> list[str]:
    return [str(change) for change in changed_settings(config_sections(resolved_config()), resolved_config(*overrides))]


def test_changes_that_training_depends_on_are_named() -> None:
    assert changes("optimizer.adam_beta1=0.5", "training.precision=fp32") == [
        "optimizer.adam_beta1 is 0.5, the checkpoint was trained with 0.9",
        "training.precision is fp32, the checkpoint was trained with bf16",
    ]


def test_layout_stop_saving_and_logging_may_change() -> None:
    free = ["parallel.tensor_model_parallel_size=2", "training.exit_iter=5", "logging.log_interval=7"]
    free += ["checkpoint.save_interval=3", "training.micro_batch_size=2", "data.num_workers=0"]
    assert changes(*free) == []


def test_a_longer_run_changes_the_schedule_unless_its_length_is_given() -> None:
    """The rate of every later step would be another one without a word."""
    assert changes("training.train_iters=300") == [
        "optimizer.lr_warmup_iters is 3, the checkpoint was trained with 1",
        "optimizer.lr_decay_iters is 300, the checkpoint was trained with 100",
        "optimizer.lr_wsd_decay_iters is 30, the checkpoint was trained with 10",
    ]
    assert changes("training.train_iters=300", "optimizer.lr_decay_iters=100") == []


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"allow_changes=optimizer\.lrr: is no setting; .* known one is optimizer\.lr$"
    ):
        resolved_config("checkpoint.allow_changes=[optimizer.lrr]")
    with pytest.raises(ConfigError, match=r"allow_changes=optimizer\.lr: must be a list"):
        resolved_config("checkpoint.allow_changes=optimizer.lr")
