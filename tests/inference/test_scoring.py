"""Scores with shared contexts are those of every text run alone, on any layout and beyond the native length."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from qwen_megatron.inference.loading import logits
from qwen_megatron.inference.scoring import Score, score_rows, stems_of
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, tiny_config

CONTEXT, OTHER = (5, 9, 2, 7, 7), (1, 2, 3)
LONG = tuple(range(3, 40))
ROWS = [
    (CONTEXT, (11,)),
    (CONTEXT, (12,)),
    (CONTEXT, (11, 13, 14)),
    (OTHER, (4, 5)),
    (CONTEXT, (11, 13, 15)),
    (CONTEXT, (11, 20)),
    (LONG, (1,)),
    (LONG, (2, 3, 4, 5)),
    (OTHER, (4, 5)),
    ((*OTHER, 4), (5,)),
]


def tiny_model(groups: Groups, **changed: Any) -> QwenModel:
    config = dataclasses.replace(tiny_config().model, num_query_groups=2, init_method_std=0.2, **changed)
    return unwrapped(build_model(config, groups, precision="fp32", seed=3)).eval()


def alone(model: QwenModel) -> list[tuple[float, bool]]:
    """Scores by a forward pass for each row."""
    found = []
    for context, new in ROWS:
        values_sv = logits(model, torch.tensor([[*context, *new[:-1]]]))[0, len(context) - 1 :].log_softmax(dim=-1)
        total = sum(float(value_v[token]) for value_v, token in zip(values_sv, new, strict=True))
        found.append((total, values_sv.argmax(dim=-1).tolist() == list(new)))
    return found


@pytest.mark.parametrize("changed", [{}, {"use_dynamic_ntk": True, "use_logn_attn": True, "seq_length": 16}])
def test_shared_contexts_change_nothing(changed: dict[str, Any]) -> None:
    with groups_of() as groups:
        model = tiny_model(groups, **changed)
        advanced: list[int] = []
        scores = score_rows(StagedModel(model, groups), ROWS, advanced.append)
        expected = alone(model)
    assert [score.log_probability for score in scores] == pytest.approx([total for total, _ in expected], abs=2e-4)
    assert [score.is_greedy for score in scores] == [is_greedy for _, is_greedy in expected]
    assert [score.num_tokens for score in scores] == [len(new) for _, new in ROWS]
    assert sum(advanced) == len(ROWS)


def test_greedy_continuations_are_known() -> None:
    with groups_of() as groups:
        model = tiny_model(groups)
        new: tuple[int, ...] = ()
        for _ in range(4):
            new += (int(logits(model, torch.tensor([[*OTHER, *new]]))[0, -1].argmax()),)
        wrong = (*new[:2], (new[2] + 1) % 100, new[3])
        scores = score_rows(StagedModel(model, groups), [(OTHER, new), (OTHER, new[:1]), (OTHER, wrong)])
    assert [score.is_greedy for score in scores] == [True, True, False]


def test_a_context_is_run_once() -> None:
    stems = stems_of(ROWS, shares=True)
    assert [stem.tokens for stem in stems] == [CONTEXT, (*OTHER, 4), LONG, (*OTHER, 4)]
    assert list(stems[0].tails) == [(11, 13), (11,)]
    assert len(stems_of(ROWS, shares=False)) == len({(*context, *new[:-1]) for context, new in ROWS})


def scoring_job(tensor_size: int, pipeline_size: int) -> list[Score]:
    with groups_of(tensor_size, pipeline_size) as groups:
        return score_rows(StagedModel(tiny_model(groups), groups), ROWS)


def test_any_layout_gives_the_same_scores(ranks: RankPool) -> None:
    (expected,) = ranks.run(1, scoring_job, tensor_size=1, pipeline_size=1)
    for found in ranks.run(4, scoring_job, tensor_size=2, pipeline_size=2):
        assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]
        assert [score.log_probability for score in found] == pytest.approx(
            [score.log_probability for score in expected], abs=2e-4
        )
