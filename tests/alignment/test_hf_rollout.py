"""The policy exported to a Qwen2 folder draws what the policy draws: the interface, and the export of weights."""

from __future__ import annotations

from pathlib import Path

from qwen_megatron.alignment.rollout import PolicyRollout, Query, Responses
from qwen_megatron.convert.hf_format import Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.inference.sampling import Sampling
from tests.support.ranks import RankPool
from tests.support.toy_alignment import END, TOY, VOCAB, save_model_job

QUERIES = [Query(number=30 + i, tokens=tuple(range(5, 8 + i))) for i in range(4)]
# Ids from these on are never drawn: of all rows, and of those that texts make.
LIMITS = (VOCAB, VOCAB // 2)
SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3, stop_token_ids=(END,))


def own_job(checkpoint: str) -> list[Responses]:
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.resume import start_from_weights
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.trainable import build_trainable
    from tests.support.trainables import groups_of

    config = resolve(load_config(None, list(TOY)), 1)
    with groups_of() as groups:
        policy = build_trainable(config, groups, get_platform("cpu"))
        rollouts = [PolicyRollout(policy, config, num_tokens=limit, max_rows=8) for limit in LIMITS]
        # Filled after the rollouts were built: they read the same memory.
        start_from_weights(Path(checkpoint), policy)
        return [rollout.generate(QUERIES, 2, SAMPLING) for rollout in rollouts]


def test_the_exported_policy_draws_the_same_tokens(ranks: RankPool, tmp_path: Path) -> None:
    # In this process, which has other uses for transformers than a rank of the pool.
    from qwen_megatron.alignment.hf_rollout import HfRollout

    settings = [*TOY, "model.init_method_std=0.3"]
    ranks.run(
        1,
        save_model_job,
        directory=str(tmp_path / "policy"),
        head="language_model",
        seed=11,
        steps=0,
        overrides=settings,
    )
    checkpoint = tmp_path / "policy" / "iter_0000001"
    to_hf(checkpoint, tmp_path / "exported", hf_format=Format.QWEN2)
    (own,) = ranks.run(1, own_job, checkpoint=str(checkpoint))
    exported = [HfRollout(tmp_path / "exported", num_tokens=limit).generate(QUERIES, 2, SAMPLING) for limit in LIMITS]
    assert exported == own
    assert len({tuple(response) for response in own[0].tokens}) == 8
    largest = [max(map(max, responses.tokens)) for responses in exported]
    assert LIMITS[1] <= largest[0] < LIMITS[0]
    assert largest[1] < LIMITS[1]
