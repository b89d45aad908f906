"""What the models say of responses, each as if it stood alone, and what its first action is worth then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qwen_megatron.alignment.collecting import Models, credited, judged
from qwen_megatron.alignment.experience import rows_of, with_extras
from qwen_megatron.alignment.rewards import RunningMoments
from qwen_megatron.alignment.rollout import Responses, Rollout
from qwen_megatron.config.sections.ppo import PpoConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from tests.support.trainables import TinyTrainable, groups_of, tiny_built, tiny_config

END, LENGTH = 7, 12
# Queries hold the token that ends turns, as those of ChatML do; two responses end theirs, one fills its row.
QUERIES = ((3, END, 4), (5, 6, END, 20))
RESPONSES = Responses(
    tokens=[[8, END], [30, 31, 32, 33], [9, 40, 41, 42, 43, 44, 45, 46], [50, 51, END]],
    finished=[True, False, False, True],
)
TEXTS = [[*QUERIES[row // 2], *response] for row, response in enumerate(RESPONSES.tokens)]


def experience() -> Batch:
    return rows_of(QUERIES, RESPONSES, LENGTH)


class Silent(Rollout):
    """Nothing is drawn here."""

    def generate(self, queries: Any, num_responses: int, sampling: Sampling) -> Responses:
        raise NotImplementedError


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    config = tiny_config("model.num_layers=2", "model.init_method_std=0.2")
    with groups_of() as groups:

        def built(name: str, seed: int, **options: Any) -> TinyTrainable:
            return tiny_built(config, groups, name=name, seed=seed, **options)

        yield Models(
            policy=built("model", 1),
            value=built("value", 2, head=SCALAR),
            reference=built("reference", 3, is_trained=False),
            reward=built("reward", 4, head=SCALAR, is_trained=False),
            rollout=Silent(),
        )


@torch.no_grad()
def said_alone(trainable: Any, text: list[int]) -> torch.Tensor:
    """Of one text without a neighbour or padding: scalars [s], or fp64 log-probabilities of all tokens [s, v]."""
    (model,) = trainable.models
    output = Output.LOGITS if model.head == "language_model" else Output.SCALARS
    found = model.eval()(torch.tensor([text]), None, None, HeadRequest(output=output))[0]
    return found.double().log_softmax(dim=-1) if output is Output.LOGITS else found


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_a_row_is_judged_as_if_it_stood_alone(models: Models, micro_batch_size: int) -> None:
    """Neither its neighbours nor what fills it up, nor ends of turns in the query, have a say."""
    rows = judged(models, experience(), micro_batch_size)
    scores, close = [], {"rtol": 0, "atol": 1e-5}
    for row, text in enumerate(TEXTS):
        labels = torch.tensor(text[1:])
        drawn = slice(len(text) - len(RESPONSES.tokens[row]) - 1, len(text) - 1)
        policy, reference = (said_alone(one, text)[:-1] for one in (models.policy, models.reference))
        own, other = (found.gather(1, labels[:, None])[drawn, 0] for found in (policy, reference))
        expected = {
            "log_probabilities_bs": own,
            "kl_bs": own - other,
            "entropies_bs": -(policy.exp() * policy).sum(dim=-1)[drawn],
            "values_bs": said_alone(models.value, text)[drawn],
        }
        for name, wanted in expected.items():
            found = rows.extras[name][row, drawn].double()
            torch.testing.assert_close(found, wanted.double(), **close, msg=lambda text, name=name: f"{name}: {text}")
        scores.append(said_alone(models.reward, text)[-1])
    torch.testing.assert_close(rows.extras["score_b"], torch.stack(scores), **close)


@pytest.mark.parametrize("filling", [0.0, 1e3, -3.0])
def test_a_first_action_is_worth_the_score_less_the_divergence_and_the_penalty(models: Models, filling: float) -> None:
    """Without a discount that is the return. A text that was cut pays the penalty, whatever its query ended."""
    rows, generator = experience(), torch.Generator().manual_seed(2)
    mask_bs = rows.loss_mask_bs > 0
    divergences_bs, values_bs = torch.randn(2, *mask_bs.shape, generator=generator)
    scores_b = torch.tensor([1.5, -2.0, 0.25, 3.0])
    said = {"kl_bs": divergences_bs, "values_bs": values_bs}
    filled = {name: values.masked_fill(~mask_bs, filling) for name, values in said.items()}
    options = PpoConfig(
        kl_coefficient=0.5,
        truncation_penalty=10.0,
        advantage_decay=1.0,
        whiten_advantages=False,
        reward_normalization="none",
    )
    rows = with_extras(rows, filled | {"score_b": scores_b})
    found = credited(rows, RunningMoments(), options, models.policy.groups)
    first_b = mask_bs.int().argmax(dim=1)[:, None]
    divergence_b = divergences_bs.masked_fill(~mask_bs, 0.0).sum(dim=1)
    expected_b = scores_b - 0.5 * divergence_b - 10.0 * torch.tensor([0.0, 1.0, 1.0, 0.0])
    returns_bs, advantages_bs = found.extras["returns_bs"], found.extras["advantages_bs"]
    torch.testing.assert_close(returns_bs.gather(1, first_b)[:, 0], expected_b)
    torch.testing.assert_close(advantages_bs[mask_bs], (returns_bs - values_bs)[mask_bs])
    assert not advantages_bs[~mask_bs].any()
