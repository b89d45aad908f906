"""Layers of pipeline stages: Megatron-Core's own division, and refusal of exactly what it refuses."""

from __future__ import annotations

import itertools

import pytest
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.arithmetic.stages import layers_per_stage
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.errors import ConfigError

BASE = load_config(None, ["model.preset=tiny", "training.train_iters=100", "training.global_batch_size=24"])


def resolved_config(num_layers: int, **parallel: int | None) -> ResolvedConfig:
    return resolve({**BASE, "model": {**BASE["model"], "num_layers": num_layers}, "parallel": parallel})


def of_megatron(
    num_layers: int, stages: int, virtual: int | None, first: int | None, last: int | None
) -> tuple[int, ...] | None:
    """Layers of each stage, None if Megatron-Core refuses."""
    try:
        config = TransformerConfig(
            num_layers=num_layers,
            hidden_size=64,
            num_attention_heads=4,
            pipeline_model_parallel_size=stages,
            virtual_pipeline_model_parallel_size=virtual,
            num_layers_in_first_pipeline_stage=first,
            num_layers_in_last_pipeline_stage=last,
            pipeline_dtype=float,
        )
        pieces = [
            [get_num_layers_to_build(config, piece, rank) for piece in (range(virtual) if virtual else (None,))]
            for rank in range(stages)
        ]
    except (ValueError, AssertionError):
        return None
    return tuple(sum(counts) for counts in pieces)


def test_stages_are_megatrons_and_so_are_refusals() -> None:
    tried = accepted = 0
    uneven = (None, 1, 2, 4)
    for num_layers, stages, virtual, first, last in itertools.product((6, 9), (2, 3, 4), (None, 2), uneven, uneven):
        expected = of_megatron(num_layers, stages, virtual, first, last)
        settings = {
            "pipeline_model_parallel_size": stages,
            "virtual_pipeline_model_parallel_size": virtual,
            "num_layers_in_first_pipeline_stage": first,
            "num_layers_in_last_pipeline_stage": last,
        }
        tried += 1
        if expected is not None and min(expected) > 0:
            resolved = resolved_config(num_layers, **settings)
            assert resolved.layers_per_stage == expected
            accepted += 1
        else:
            with pytest.raises(ConfigError) as raised:
                resolved_config(num_layers, **settings)
            assert len(raised.value.problems) == 1
    assert tried == 192
    assert accepted > 30


def test_parameters_of_uneven_stages() -> None:
    resolved = resolved_config(
        9,
        pipeline_model_parallel_size=4,
        num_layers_in_first_pipeline_stage=2,
        num_layers_in_last_pipeline_stage=1,
    )
    assert resolved.layers_per_stage == (2, 3, 3, 1)
    assert sum(resolved.num_parameters_per_rank) == resolved.num_parameters == count_parameters(resolved.model)
    first, second, third, last = resolved.num_parameters_per_rank
    layer = second - first + 151936 * 64
    assert second == third == 3 * layer
    assert last == layer + 151936 * 64 + 64


@pytest.mark.parametrize(
    ("layers", "stages", "first", "last", "problem"),
    [
        (
            8,
            1,
            2,
            None,
            (
                "parallel.num_layers_in_first_pipeline_stage=2: sets a pipeline stage apart, but "
                "parallel.pipeline_model_parallel_size is 1; leave it out"
            ),
        ),
        (
            8,
            2,
            3,
            4,
            (
                "parallel.num_layers_in_last_pipeline_stage=4: must be model.num_layers(8) - "
                "parallel.num_layers_in_first_pipeline_stage(3); use 5"
            ),
        ),
        (
            8,
            3,
            3,
            None,
            (
                "parallel.num_layers_in_first_pipeline_stage=3: must leave equal parts of "
                "model.num_layers(8) to 2 other stages; use 2 or 4"
            ),
        ),
        (
            12,
            4,
            1,
            4,
            (
                "parallel.num_layers_in_last_pipeline_stage=4: must leave equal parts of "
                "model.num_layers(12) - parallel.num_layers_in_first_pipeline_stage(1) to 2 other stages; use 3 or 5"
            ),
        ),
        (
            4,
            3,
            4,
            2,
            (
                "parallel.num_layers_in_last_pipeline_stage=2: must leave equal parts of "
                "model.num_layers(4) - parallel.num_layers_in_first_pipeline_stage(4) to 1 other stage; lower "
                "parallel.num_layers_in_first_pipeline_stage"
            ),
        ),
    ],
)
def test_a_bad_division_names_the_nearest_good_one(
    layers: int, stages: int, first: int | None, last: int | None, problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        resolved_config(
            layers,
            pipeline_model_parallel_size=stages,
            num_layers_in_first_pipeline_stage=first,
            num_layers_in_last_pipeline_stage=last,
        )
    assert raised.value.problems == [problem]


def test_interleaved_pieces_divide_every_stage() -> None:
    settings = {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 4,
        "num_layers_in_first_pipeline_stage": 2,
    }
    with pytest.raises(ConfigError) as raised:
        resolved_config(6, **settings)
    assert raised.value.problems == [
        ("parallel.virtual_pipeline_model_parallel_size=4: must divide the layers of every stage (2, 4); use 2")
    ]


def test_even_stages_stay_as_they_were() -> None:
    assert layers_per_stage(8, 1, None, None) == (8,)
    assert layers_per_stage(8, 4, None, None) == (2, 2, 2, 2)
