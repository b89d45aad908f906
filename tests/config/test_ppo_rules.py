"""What PPO refuses, by name and with a way out; and what its models take."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.config.arithmetic.memory import rank_memory
from qwen_megatron.config.arithmetic.ppo import other_models, work_shares
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.kinds.table import JOBS
from qwen_megatron.jobs.preflight import prepare_config

RECIPE = Path(__file__).parents[2] / "qwen_megatron" / "recipes" / "ppo-7b.yaml"


def prepared(*overrides: str, world_size: int | None = None) -> ResolvedConfig:
    return prepare_config([str(RECIPE)], list(overrides), world_size, kind=JOBS["ppo"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"],
            "parallel.virtual_pipeline_model_parallel_size=2: is not for ppo",
        ),
        (["parallel.context_parallel_size=2"], "parallel.context_parallel_size=2: is not for ppo"),
        (
            ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"],
            "parallel.overlap_param_gather=true: is not for ppo",
        ),
        (["parallel.cuda_graph_impl=local"], "parallel.cuda_graph_impl=local: is not for ppo"),
        (
            [
                "parallel.tensor_model_parallel_size=2",
                "parallel.sequence_parallel=true",
                "parallel.tp_comm_overlap=true",
            ],
            "parallel.tp_comm_overlap=true: is not for ppo",
        ),
        (["model.hidden_dropout=0.1"], "model.hidden_dropout=0.1: must be 0 in ppo"),
        (
            ["model.implementation=torch", "model.attention_dropout=0.1"],
            "model.attention_dropout=0.1: must be 0 in ppo",
        ),
        (["ppo.reward_model=null"], "ppo.reward_model=null: is needed"),
        (["checkpoint.init_from=null"], "checkpoint.init_from=null: is needed"),
        (["ppo.response_length=2048"], "ppo.response_length=2048: must be below training.seq_length(2048)"),
        (
            ["training.global_batch_size=12"],
            "must be a multiple of micro_batch_size(2) x data_parallel_size(2) x ppo.num_minibatches(4) = 16",
        ),
        (["ppo.pretraining_blend=[a.bin]"], "ppo.pretraining_blend=a.bin: a prefix is a path without suffix; use a"),
        (["ppo.pretraining_blend={a: 0}"], "ppo.pretraining_blend.a=0: a weight must be a number above 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_ppo_cannot_run_on_is_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(*overrides)
    assert message in str(caught.value)


def test_the_defaults_are_the_figures_of_the_paper() -> None:
    options = prepared().ppo
    paper = (options.value_warmup_iters, options.responses_per_query, options.kl_coefficient, options.value_lr)
    assert paper == (50, 2, 0.04, 5e-6)
    assert (options.value_clip, options.top_p, options.reward_normalization) == (0.15, 0.9, "mean")
    assert prepared().optimizer.lr == 1e-6


def test_four_models_take_forty_bytes_a_parameter_before_splitting() -> None:
    config = prepared(
        "parallel.tensor_model_parallel_size=1", "parallel.sequence_parallel=false", "parallel.world_size=1"
    )
    (memory,) = rank_memory(config)
    # The value and the reward model have one row in place of the output layer.
    head = config.model.vocab_size * config.model.hidden_size - config.model.hidden_size
    assert memory.state == 40 * config.num_parameters - 20 * head
    split = rank_memory(prepared("parallel.world_size=32"))[0]
    assert split.state < memory.state / 4
    one_place = prepared("ppo.share_frozen_model=true")
    both, shared = (other_models(one, 0).frozen for one in (prepared(), one_place))
    assert shared == 2 * one_place.num_parameters_per_rank[0] < both


def test_the_work_of_a_step_by_part() -> None:
    assert work_shares(prepared()) == pytest.approx(
        {
            "rollout": 1 / 11,
            "judging": 4 / 11,
            "learning of the policy": 3 / 11,
            "learning of the value model": 3 / 11,
        }
    )
    mixed = work_shares(prepared("ppo.pretraining_blend=[a]", "ppo.num_epochs=2"))
    assert sum(mixed.values()) == pytest.approx(1.0)
    assert mixed["pretraining text"] == pytest.approx(24 / 41)
