"""What a run says when it goes on with other settings than its checkpoint's."""

from __future__ import annotations

from qwen_megatron.checkpoint.contents import plan_sections
from qwen_megatron.cli.restore import changed_settings
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import Plan, resolve


def plan_of(*overrides: str) -> Plan:
    return resolve(load_config(None, ["model.preset=tiny", "training.train_iters=100", *overrides]))


def test_changes_that_training_depends_on_are_named() -> None:
    saved = plan_sections(plan_of())
    assert changed_settings(saved, plan_of("optimizer.adam_beta1=0.5", "training.seed=7")) == [
        "optimizer.adam_beta1 is 0.5, the checkpoint was trained with 0.9",
        "training.seed is 7, the checkpoint was trained with 1234",
    ]


def test_layout_stop_and_logging_may_change_silently() -> None:
    saved = plan_sections(plan_of())
    changed = plan_of("parallel.tensor_model_parallel_size=2", "training.exit_iter=5", "logging.log_interval=7")
    assert changed_settings(saved, changed) == []
