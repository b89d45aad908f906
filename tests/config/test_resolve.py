"""Every rule of a configuration: the message with key, value, rule and nearest good value, and nothing besides it."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.preflight import prepare_config

TINY = ("model.preset=tiny", "training.train_iters=100", "training.global_batch_size=8")


def resolved_config(*overrides: str, world_size: int | None = None) -> ResolvedConfig:
    return prepare_config(None, [*TINY, *overrides], world_size)


def problems_of(*overrides: str, world_size: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolved_config(*overrides, world_size=world_size)
    return raised.value.problems


ONE_PROBLEM = {
    "parallel.tensor_model_parallel_size=3": (
        "must divide model.num_attention_heads(4) and model.ffn_hidden_size(176); use 2 or 4"
    ),
    "parallel.tensor_model_parallel_size=8": "must divide model.num_attention_heads(4); use 4",
    "parallel.tensor_model_parallel_size=0": "must be at least 1; use 1",
    "parallel.tensor_model_parallel_size=-2": "must be at least 1; use 1",
    "parallel.pipeline_model_parallel_size=3": "must divide model.num_layers(4); use 2 or 4",
    "parallel.pipeline_model_parallel_size=1000000000000000000000000000000000000000000": (
        "must be at most 1048576; use 1048576"
    ),
    "parallel.world_size=0": "must be at least 1; use 1",
    "parallel.sequence_parallel=true": (
        "splits the sequence over tensor-parallel processes, but parallel.tensor_model_parallel_size is 1; use false, "
        "or raise parallel.tensor_model_parallel_size"
    ),
    "parallel.platform=gpu": "must be auto, cpu or cuda; use cpu",
    "parallel.step_timeout_seconds=0": "must be at least 1; use 1",
    "model.preset=qwen-7": "must be tiny, qwen-0.5b, qwen-1.8b, qwen-7b, qwen-14b or qwen-72b; use qwen-7b",
    "model.num_layers=-1": "must be at least 1; use 1",
    "model.num_attention_heads=5": "must divide model.hidden_size(64) where model.kv_channels is not given; use 4 or 8",
    "model.hidden_size=66": (
        "must be a multiple of model.num_attention_heads(4) where model.kv_channels is not given; use 64 or 68"
    ),
    "model.num_query_groups=3": "must divide model.num_attention_heads(4); use 2 or 4",
    "model.kv_channels=15": "must be even, rotary embedding turns pairs; use 14 or 16",
    "model.vocab_size=0": "must be at least 1; use 1",
    "model.layernorm_epsilon=0": "must be above 0",
    "model.hidden_dropout=1.0": "must be below 1",
    "model.rotary_base=.nan": "must be a finite number",
    "model.implementation=te": "must be auto, transformer_engine or torch; use auto",
    "optimizer.lr=0": "must be above 0; use 0.0003 (the default)",
    "optimizer.lr=.inf": "must be a finite number; use 0.0003 (the default)",
    "optimizer.lr=1e400": "must be a finite number; use 0.0003 (the default)",
    "optimizer.lr=.nan": "must be a finite number; use 0.0003 (the default)",
    "optimizer.lr=nan": "must be a number; use 0.0003 (the default)",
    "optimizer.lr=-3e-4": "must be above 0; use 0.0003 (the default)",
    "optimizer.min_lr=0.01": "must be at most optimizer.lr(0.0003); use 0.0003",
    "optimizer.adam_beta2=1": "must be below 1; use 0.95 (the default)",
    "optimizer.lr_decay_style=cosin": "must be cosine, linear, constant or WSD; use cosine",
    "optimizer.lr_warmup_iters=100": "must be below optimizer.lr_decay_iters(100); use 99",
    "optimizer.clip_grad=-1": "must be at least 0; use 0",
    "training.precision=fp16": "must be bf16 or fp32; use bf16",
    "training.exit_iter=101": "must be at most training.train_iters(100); use 100",
    "training.seed=-1": "must be at least 0; use 0",
    "training.seed=9223372036854775808": "must be at most 9223372036854775807; use 9223372036854775807",
    "training.eval_interval=0": "must be at least 1; use 1",
    "data.blend=corpus": "must be a list of prefixes or a mapping of prefix to weight; use [corpus]",
    "data.eval_samples=-1": "must be at least 0; use 0",
    "checkpoint.save_interval=0": "must be at least 1; use 1",
    "checkpoint.load=''": "must be auto, none or the path of a checkpoint; use auto",
    "logging.log_interval=0": "must be at least 1; use 1",
    "logging.peak_tflops_per_rank=0": "must be above 0",
    "logging.wandb_mode=disabled": "must be online or offline; use online",
    "logging.profile_steps=ten": "must list numbers and ranges; use for example 10-12,50",
    "logging.profile_steps=''": "must list numbers and ranges; use for example 10-12,50",
    "logging.profile_steps=12-10": "must not have ranges that run backwards; use 10-12",
    "logging.profile_steps=1-999999999999": "must name at most 100000 numbers; use a shorter range",
    "logging.profile_steps='0,5'": "must lie between 1 and 100, because of training.train_iters(100)",
    "logging.profile_ranks=1": "must lie between 0 and 0, because of parallel.world_size(1)",
}


@pytest.mark.parametrize("override", list(ONE_PROBLEM))
def test_one_bad_value_gives_exactly_its_own_problem(override: str) -> None:
    key, _, _ = override.partition("=")
    (problem,) = problems_of(override)
    assert problem.startswith(f"{key}=")
    assert problem.partition(": ")[2] == ONE_PROBLEM[override]


def test_a_value_is_shown_as_it_was_understood() -> None:
    assert problems_of("parallel.tensor_model_parallel_size=3")[0].startswith("parallel.tensor_model_parallel_size=3: ")
    assert problems_of("optimizer.lr=-3e-4")[0].startswith("optimizer.lr=-0.0003: ")
    assert problems_of("parallel.world_size=1" + "0" * 60)[0].startswith("parallel.world_size=a number above 10**60: ")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("training.global_batch_size=30", "training.micro_batch_size=2", "parallel.world_size=4"),
            (
                "training.global_batch_size=30: must be a multiple of training.micro_batch_size(2) x "
                "data_parallel_size(4) = 8; use 24 or 32"
            ),
        ),
        (
            ("training.global_batch_size=5", "parallel.world_size=8"),
            (
                "training.global_batch_size=5: must be a multiple of training.micro_batch_size(1) x "
                "data_parallel_size(8) = 8; use 8"
            ),
        ),
        (
            (
                "parallel.world_size=6",
                "parallel.tensor_model_parallel_size=2",
                "parallel.pipeline_model_parallel_size=2",
            ),
            (
                "parallel.world_size=6: must be a multiple of parallel.tensor_model_parallel_size(2) x "
                "parallel.pipeline_model_parallel_size(2) = 4; use 4 or 8"
            ),
        ),
        (
            (
                "parallel.sequence_parallel=true",
                "parallel.tensor_model_parallel_size=4",
                "training.seq_length=126",
            ),
            (
                "training.seq_length=126: must be a multiple of parallel.tensor_model_parallel_size(4) with "
                "parallel.sequence_parallel; use 124 or 128"
            ),
        ),
        (
            ("model.use_logn_attn=true", "training.seq_length=512"),
            (
                "training.seq_length=512: must be at most model.seq_length(256) with model.use_logn_attn: "
                "evaluation would stretch positions that training does not; use 256"
            ),
        ),
        (
            ("parallel.platform=cpu", "model.implementation=transformer_engine"),
            "model.implementation=transformer_engine: needs a CUDA device, but parallel.platform is cpu; use torch",
        ),
        (
            ("model.kv_channels=2", "model.use_dynamic_ntk=true"),
            "model.kv_channels=2: must be above 2 with model.use_dynamic_ntk; use 4",
        ),
        (
            ("model.num_query_groups=2", "parallel.tensor_model_parallel_size=4"),
            "parallel.tensor_model_parallel_size=4: must divide model.num_query_groups(2); use 2",
        ),
        (
            ("checkpoint.load=a", "checkpoint.init_from=b"),
            (
                "checkpoint.init_from=b: cannot be combined with checkpoint.load=a, which brings its own weights; "
                "leave one out"
            ),
        ),
        (
            ("optimizer.lr_decay_iters=50", "optimizer.lr_warmup_iters=60"),
            "optimizer.lr_warmup_iters=60: must be below optimizer.lr_decay_iters(50); use 49",
        ),
        (("data.blend=[a, b, a]",), "data.blend=a: is named 2 times; name it once and give weights as prefix: weight"),
        (("data.blend=[a/b.bin]",), "data.blend=a/b.bin: a prefix is a path without suffix; use a/b"),
        (
            ("data.eval_blend=web",),
            "data.eval_blend=web: must be a mapping of name to prefix or list of prefixes; use {test: web}",
        ),
        (
            ("data.eval_blend=[a/web, b/web]",),
            "data.eval_blend=web: 2 prefixes end in this name; use a mapping of name to prefix",
        ),
        (
            ("data.eval_blend={a b: c}",),
            "data.eval_blend=a b: a name must be at most 64 letters, digits, _ . + or -; use test",
        ),
        (("data.eval_blend={a: []}",), "data.eval_blend.a=[]: names no corpus; leave the name out"),
        (("data.eval_blend={a: [b, c.bin]}",), "data.eval_blend.a=c.bin: a prefix is a path without suffix; use c"),
        (
            ("data.blend=[b]", "data.eval_blend={a: b}"),
            "data.eval_blend.a=b: is trained on (data.blend); use another corpus, or hold out with data.eval_samples",
        ),
        (("data.blend={a: 0}",), "data.blend.a=0: a weight must be a number above 0, at most 1e15; use 1.0"),
        (("data.blend={a: .inf}",), "data.blend.a=inf: a weight must be a number above 0, at most 1e15; use 1.0"),
        (("data.blend={a: x}",), "data.blend.a=x: a weight must be a number above 0, at most 1e15; use 1.0"),
        (("data.blend={a: true}",), "data.blend.a=true: a weight must be a number above 0, at most 1e15; use 1.0"),
    ],
)
def test_rules_between_values(overrides: tuple[str, ...], expected: str) -> None:
    assert problems_of(*overrides) == [expected]


def test_all_problems_come_at_once_and_each_once() -> None:
    problems = problems_of(
        "parallel.tensor_model_parallel_size=3",
        "parallel.pipeline_model_parallel_size=3",
        "parallel.world_size=7",
        "training.micro_batch_size=3",
        "training.global_batch_size=31",
        "training.exit_iter=500",
        "optimizer.lr_warmup_iters=1000",
        "optimizer.adam_beta1=2",
        "logging.log_interval=-5",
        "data.blend={a.idx: -1}",
    )
    assert sorted(problem.partition("=")[0] for problem in problems) == [
        "data.blend",
        "data.blend.a.idx",
        "logging.log_interval",
        "optimizer.adam_beta1",
        "optimizer.lr_warmup_iters",
        "parallel.pipeline_model_parallel_size",
        "parallel.tensor_model_parallel_size",
        "training.exit_iter",
        "training.global_batch_size",
    ]


def test_an_architecture_that_is_not_whole_names_what_is_missing() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve(load_config(None, ["model.num_layers=2", "model.hidden_size=64", "model.seq_length=256"]))
    (problem,) = raised.value.problems
    assert problem == (
        "model.preset=null: is needed unless the whole architecture is given, and model.ffn_hidden_size, "
        "model.num_attention_heads, model.vocab_size is missing; use tiny, qwen-0.5b, qwen-1.8b, qwen-7b, qwen-14b or "
        "qwen-72b"
    )


def test_world_size_of_the_launcher_wins_over_none_and_must_equal_the_given_one() -> None:
    assert resolved_config(world_size=4).data_parallel_size == 4
    assert resolved_config("parallel.world_size=4", world_size=4).world_size == 4
    assert resolved_config("parallel.tensor_model_parallel_size=2").world_size == 2
    assert problems_of("parallel.world_size=8", world_size=4) == [
        "parallel.world_size=8: but torchrun started 4 processes; use 4, or leave it out"
    ]


def test_plan_of_a_layout() -> None:
    resolved = resolved_config(
        "parallel.tensor_model_parallel_size=4",
        "parallel.pipeline_model_parallel_size=2",
        "parallel.world_size=16",
        "parallel.sequence_parallel=true",
        "model.vocab_size=1001",
        "model.num_layers=6",
        "training.micro_batch_size=2",
        "training.global_batch_size=12",
    )
    assert resolved.data_parallel_size == 2
    assert resolved.num_microbatches == 3
    assert resolved.padded_vocab_size == 1004
    assert resolved.layers_per_stage == (3, 3)
    assert resolved.world_size == resolved.parallel.world_size == 16
    assert resolved.tokens_per_step == 12 * 256


def test_values_left_open_follow_from_others() -> None:
    resolved = resolved_config("training.train_iters=500", "optimizer.lr=1e-2")
    assert resolved.optimizer.lr_decay_iters == 500
    assert resolved.optimizer.lr_warmup_iters == 5
    assert resolved.optimizer.min_lr == pytest.approx(1e-3)
    assert resolved.training.seq_length == 256
    assert resolved.model.kv_channels == 16
    long = resolved_config("model.preset=qwen-7b", "training.train_iters=1000000")
    assert long.optimizer.lr_warmup_iters == 2000
    assert long.training.seq_length == 2048


def test_a_changed_width_changes_what_follows_from_it() -> None:
    assert resolved_config("model.hidden_size=128").model.kv_channels == 32
    assert resolved_config("model.num_attention_heads=8").model.num_query_groups == 8
    assert resolved_config("model.num_attention_heads=8").model.kv_channels == 8
    assert resolved_config("model.hidden_size=128", "model.kv_channels=16").model.kv_channels == 16


def test_nothing_is_left_open_and_the_input_is_unchanged() -> None:
    settings = load_config(None, [*TINY, "data.blend=[b, a]"])
    before = copy.deepcopy(settings)
    resolved = resolve(settings)
    assert settings == before
    open_by_nature = {
        "threads",
        "exit_iter",
        "init_from",
        "peak_tflops_per_rank",
        "virtual_pipeline_model_parallel_size",
    }
    open_by_nature |= {"wandb_project", "profile_steps", "train_epochs", "gradient_bucket_size"}
    open_by_nature |= {"save_interval_minutes", "keep_last", "keep_every", "exit_duration_minutes"}
    open_by_nature |= {"num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"}
    open_by_nature |= {"rampup_start_batch_size", "rampup_batch_size_increment", "rampup_samples"}
    for section in (
        resolved.model,
        resolved.parallel,
        resolved.optimizer,
        resolved.training,
        resolved.data,
        resolved.checkpoint,
        resolved.logging,
    ):
        empty = {field.name for field in dataclasses.fields(section) if getattr(section, field.name) is None}
        assert empty <= open_by_nature
    assert resolved.data.blend == ("b", "a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.world_size = 2  # type: ignore[misc]


def test_defaults_are_the_reports() -> None:
    resolved = resolve(load_config(None, ["model.preset=qwen-7b"]))
    assert (resolved.training.seq_length, resolved.training.precision, resolved.optimizer.lr) == (2048, "bf16", 3e-4)
    assert resolved.tokens_per_step == 4 * 1024 * 1024
    assert (resolved.optimizer.adam_beta1, resolved.optimizer.adam_beta2, resolved.optimizer.adam_eps) == (
        0.9,
        0.95,
        1e-8,
    )
    assert (resolved.optimizer.weight_decay, resolved.optimizer.clip_grad) == (0.1, 1.0)
    assert math.isclose(resolved.optimizer.min_lr, 3e-5)
