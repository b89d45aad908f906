"""Passes that only ask: the same answers however rows are cut and on every layout; entropies beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.alignment.asking import ask, scalars_of
from qwen_megatron.alignment.policy_loss import actions_of
from qwen_megatron.data.batch import Batch
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL, SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.log_probabilities import head_entropies, head_log_probabilities
from qwen_megatron.model.loss import VocabularyShard
from qwen_megatron.platforms import vocabulary
from tests.alignment.test_losses import rows_with
from tests.support.ranks import RankPool
from tests.support.trainables import groups_for, groups_of, tiny_built, tiny_config

TP2, SP, PP2 = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
)


def with_entropies(batch: Batch) -> HeadRequest:
    return actions_of(batch, with_entropies=True)


def asking_job(micro_batch_size: int, overrides: list[str], share: bool = False) -> dict[str, np.ndarray]:
    """What a language model and a scalar model say of the same rows."""
    config = tiny_config(*overrides)
    rows = rows_with()
    with groups_for(config) as groups:
        language = tiny_built(config, groups, name="reference", is_trained=False)
        scalar = tiny_built(config, groups, head=SCALAR)
        found = ask(language, with_entropies, rows, micro_batch_size=micro_batch_size, width=2)
        plain = ask(language, actions_of, rows, micro_batch_size=micro_batch_size)
        assert torch.equal(found[..., 0], plain)
        return {
            "log-probabilities": plain.numpy(),
            "entropies": found[..., 1].numpy(),
            "scalars": ask(scalar, scalars_of, rows, micro_batch_size=micro_batch_size).numpy(),
        }


@pytest.mark.parametrize(
    ("micro_batch_size", "layout"),
    [(1, (1,)), (2, (1,)), (2, (2, TP2)), (4, (2, TP2, SP)), (4, (2, PP2)), (2, (4, TP2, SP, PP2))],
    ids=str,
)
def test_answers_depend_neither_on_micro_batches_nor_on_the_layout(
    ranks: RankPool, micro_batch_size: int, layout: tuple[Any, ...]
) -> None:
    world_size, *overrides = layout
    (expected,) = ranks.run(1, asking_job, micro_batch_size=8, overrides=[])
    assert np.count_nonzero(expected["log-probabilities"]) == rows_with().loss_mask_bs.sum()
    # On every rank, those of earlier stages too.
    for found in ranks.run(world_size, asking_job, micro_batch_size=micro_batch_size, overrides=overrides):
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_log_probabilities_and_entropies_are_those_of_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody changes what the other reads: in either order they are the same, and so are the logits after."""
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", 5)
    rows = rows_with()
    positions_bs = rows.loss_mask_bs > 0
    with groups_of() as groups:
        model = tiny_built(tiny_config(), groups, head=LANGUAGE_MODEL).models[0].eval()
        with torch.no_grad():
            hidden_sbh = model(rows.tokens_bs, None, None, HeadRequest(output=Output.HIDDEN_STATES)).transpose(0, 1)
            before_bsv = model(rows.tokens_bs, None)
        weight_vh = model.output_layer.weight
        shard = VocabularyShard(vocab_size=161, rows=161, tp_group=groups.tp)
        kept = hidden_sbh.clone(), weight_vh.clone()
        entropies = head_entropies(hidden_sbh, weight_vh, positions_bs, shard)
        values = head_log_probabilities(hidden_sbh, weight_vh, rows.labels_bs, positions_bs, shard)
        assert torch.equal(head_log_probabilities(hidden_sbh, weight_vh, rows.labels_bs, positions_bs, shard), values)
        assert torch.equal(head_entropies(hidden_sbh, weight_vh, positions_bs, shard), entropies)
        assert torch.equal(hidden_sbh, kept[0])
        assert torch.equal(weight_vh, kept[1])
        with torch.no_grad():
            after_bsv = model(rows.tokens_bs, None)
        assert torch.equal(after_bsv, before_bsv)
        dense = before_bsv.double().log_softmax(dim=-1)
        expected = dense.gather(2, rows.labels_bs[..., None])[..., 0]
        torch.testing.assert_close(values[positions_bs].double(), expected[positions_bs], rtol=0, atol=1e-6)
        expected = -(dense.exp() * dense).sum(dim=-1)
        torch.testing.assert_close(entropies[positions_bs].double(), expected[positions_bs], rtol=0, atol=1e-5)
        nowhere = torch.zeros_like(positions_bs)
        assert not head_entropies(hidden_sbh, weight_vh, nowhere, shard).any()
