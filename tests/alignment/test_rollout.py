"""Rollouts: what is drawn, by whom, and what becomes of it in rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwen_megatron.alignment.collecting import Models, credited, judged
from qwen_megatron.alignment.experience import rows_of
from qwen_megatron.alignment.learning import Learner
from qwen_megatron.alignment.rewards import RunningMoments
from qwen_megatron.alignment.rollout import PolicyRollout, Query, Responses
from qwen_megatron.data.batch import Batch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.train.objective import Sums
from tests.support.ranks import RankPool
from tests.support.trainables import groups_for, groups_of, take_step, tiny_built, tiny_config

END = 7
QUERIES = [Query(number=10 + i, tokens=tuple(range(3, 7 + i))) for i in range(4)]
SAMPLING = Sampling(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=5, stop_token_ids=(END,))


def rollout_job(overrides: list[str], num_tokens: int = 1 << 30, queries: Any = QUERIES) -> Responses:
    config = tiny_config(*overrides)
    with groups_for(config) as groups:
        policy = tiny_built(config, groups)
        rollout = PolicyRollout(policy, config, num_tokens=num_tokens, max_rows=3)
        return rollout.generate(queries, 2, SAMPLING)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (2, ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"]),
        (2, ["parallel.pipeline_model_parallel_size=2"]),
        (2, []),
    ],
    ids=["tp2-sp", "pp2", "dp2"],
)
def test_every_rank_of_every_layout_draws_the_same(ranks: RankPool, world_size: int, overrides: list[str]) -> None:
    (expected,) = ranks.run(1, rollout_job, overrides=[])
    assert len(expected.tokens) == 8
    for found in ranks.run(world_size, rollout_job, overrides=overrides):
        assert found == expected


def test_a_response_depends_on_its_query_and_number_alone() -> None:
    whole = rollout_job([])
    assert rollout_job([], queries=QUERIES[2:3]).tokens == whole.tokens[4:6]
    # Two responses to one query differ, and so do those to the same query under another number.
    assert whole.tokens[0] != whole.tokens[1]
    other = Query(number=99, tokens=QUERIES[0].tokens)
    assert rollout_job([], queries=[other]).tokens != whole.tokens[:2]


def test_a_response_ends_where_its_end_is_drawn_and_nowhere_else() -> None:
    """An end in the query ends nothing, and a response that was cut gets none."""
    queries = [Query(number=number, tokens=(3, END, 20 + number)) for number in range(4)]
    # Of ten tokens one is the end.
    responses = rollout_job([], num_tokens=10, queries=queries)
    assert set(responses.finished) == {True, False}
    for response, finished in zip(responses.tokens, responses.finished, strict=True):
        assert response.count(END) == finished
        assert response[-1] == END if finished else len(response) == SAMPLING.max_new_tokens


def test_ids_beyond_the_vocabulary_are_never_drawn(ranks: RankPool) -> None:
    """Neither rows that pad it for the layout, 161 to 163, nor those that no text makes."""
    sampling = Sampling(max_new_tokens=24, temperature=100.0, seed=1, stop_token_ids=(END,))
    for found in ranks.run(2, padded_job, sampling=sampling, num_tokens=1 << 30):
        assert max(max(tokens) for tokens in found.tokens) == 160
    for found in ranks.run(2, padded_job, sampling=sampling, num_tokens=100):
        assert max(max(tokens) for tokens in found.tokens) == 99


def padded_job(sampling: Sampling, num_tokens: int) -> Responses:
    """A vocabulary of 161 on two tensor-parallel ranks, whose padded row is the likeliest of all."""
    config = tiny_config("parallel.tensor_model_parallel_size=2")
    with groups_for(config) as groups:
        policy = tiny_built(config, groups)
        weight = policy.models[0].output_layer.weight
        if groups.tp.rank() == 1:
            with torch.no_grad():
                weight[-1] = 100.0
        rollout = PolicyRollout(policy, config, num_tokens=num_tokens, max_rows=64)
        queries = [Query(number=i, tokens=(i % 50 + 10,)) for i in range(24)]
        return rollout.generate(queries, 1, sampling)


def test_the_rollout_reads_the_weights_that_are_trained() -> None:
    from tests.support.trainables import random_batches

    config = tiny_config("training.global_batch_size=2")
    with groups_of() as groups:
        policy = tiny_built(config, groups)
        rollout = PolicyRollout(policy, config, num_tokens=161, max_rows=8)
        own, alias = dict(policy.models[0].named_parameters()), dict(rollout.staged.model.named_parameters())
        assert own.keys() == alias.keys()
        before = rollout.generate(QUERIES, 2, SAMPLING)
        for _ in range(3):
            take_step(policy, random_batches(policy, 161), learning_rate=0.1)
        assert all(own[name].data_ptr() == alias[name].data_ptr() for name in own)
        after = rollout.generate(QUERIES, 2, SAMPLING)
        assert after != before
        fresh = PolicyRollout(policy, config, num_tokens=161, max_rows=8)
        assert fresh.generate(QUERIES, 2, SAMPLING) == after


def test_nothing_is_put_into_a_truncated_response() -> None:
    """Its row ends with what was drawn; one that ended holds the end, as an action; a query may hold ends too."""
    queries = [(3, END, 4), (5, 6)]
    responses = Responses(tokens=[[8, END], [8, 9, 10], [END], [11, 12, 13]], finished=[True, False, True, False])
    rows = rows_of(queries, responses, 8)
    assert rows.tokens_bs.tolist() == [
        [3, END, 4, 8, END, 0, 0, 0],
        [3, END, 4, 8, 9, 10, 0, 0],
        [5, 6, END, 0, 0, 0, 0, 0],
        [5, 6, 11, 12, 13, 0, 0, 0],
    ]
    for row, response in enumerate(responses.tokens):
        assert rows.labels_bs[row][rows.loss_mask_bs[row] > 0].tolist() == response
    assert rows.extras["end_index_b"].tolist() == [4, 5, 2, 4]
    assert (rows.tokens_bs == END).sum(dim=1).tolist() == [2, 1, 1, 0]
    assert responses.lengths == [2, 3, 1, 3]


class Watching:
    """Keeps how far log-probabilities are from those of the draws."""

    def __init__(self, inner: Any):
        self.inner, self.largest = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        self.largest.append(float((output - batch.extras["log_probabilities_bs"]).abs().max()))
        return self.inner.measure(output, batch)


def ratio_job(overrides: list[str]) -> tuple[list[float], float, dict[str, Any]]:
    """Of the first minibatch and the second; and a truncation penalty seen in the returns."""
    config = tiny_config(
        *overrides,
        "ppo.num_minibatches=2",
        "ppo.value_warmup_iters=0",
        "ppo.whiten_advantages=false",
        "ppo.truncation_penalty=100",
    )
    with groups_for(config) as groups:
        policy, value = tiny_built(config, groups), tiny_built(config, groups, name="value", head=SCALAR)
        reference = tiny_built(config, groups, name="reference", is_trained=False)
        reward = tiny_built(config, groups, name="reward", head=SCALAR, is_trained=False)
        rollout = PolicyRollout(policy, config, num_tokens=161, max_rows=8)
        models = Models(policy=policy, value=value, reference=reference, reward=reward, rollout=rollout)
        responses = rollout.generate(QUERIES, 2, SAMPLING)
        rows = rows_of([query.tokens for query in QUERIES], responses, 32)
        rows = judged(models, rows, 2)
        rows = credited(rows, RunningMoments(), config.ppo, groups)
        learner = Learner(config, models)
        watching = Watching(learner.of_policy)
        learner.of_policy = watching  # type: ignore[assignment]
        learner.learn(rows, step=1, rate=1e-3, texts=None)
        first_b = (rows.loss_mask_bs > 0).int().argmax(dim=1)
        returns_b = rows.extras["returns_bs"].gather(1, first_b[:, None])[:, 0]
        return (
            watching.largest,
            float(rows.extras["kl_bs"].abs().max()),
            {
                "finished": responses.finished,
                "returns": returns_b.tolist(),
            },
        )


def test_the_first_ratio_is_one_although_draws_are_cut_at_top_p(ranks: RankPool) -> None:
    (one,) = ranks.run(1, ratio_job, overrides=[])
    for largest, kl, _ in (one, *ranks.run(2, ratio_job, overrides=["parallel.tensor_model_parallel_size=2"])):
        half = len(largest) // 2
        assert max(largest[:half]) < 1e-6
        # The second minibatch comes after an update.
        assert max(largest[half:]) > 1e-4
        # Policy and reference are the same model still.
        assert kl < 1e-6
    returns, finished = torch.tensor(one[2]["returns"]), torch.tensor(one[2]["finished"])
    assert finished.any()
    assert (returns[~finished] < -50).all()
    assert (returns[finished] > -50).all()
