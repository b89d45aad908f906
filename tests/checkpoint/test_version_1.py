"""Checkpoints of version 1, in which the only model has no name, still load: one is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from tests.support.corpora import write_formula_corpus
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

KEPT = Path(__file__).parents[1] / "fixtures" / "checkpoint-v1" / "iter_0000002"

# Written by version 0.1.0 at commit 9365f36 on two tensor-parallel ranks, after step 2.
RECIPE = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "model.hidden_size=16",
    "model.ffn_hidden_size=32",
    "model.num_attention_heads=2",
    "model.num_query_groups=2",
    "model.kv_channels=8",
    "model.vocab_size=257",
    "training.precision=fp32",
    "training.train_iters=6",
    "training.seed=1234",
    "training.seq_length=64",
    "training.micro_batch_size=1",
    "training.global_batch_size=4",
    "training.eval_interval=10",
    "optimizer.lr=3e-2",
    "optimizer.lr_warmup_iters=1",
    "data.eval_samples=4",
    "data.num_workers=1",
    "checkpoint.save_interval=2",
    "logging.tensorboard=false",
)
# Loss and gradient norm of the steps that followed there.
FOLLOWED = {
    3: (5.5420732498168945, 0.5217729630193634),
    4: (5.518566131591797, 0.3535818610064745),
    5: (5.505442023277283, 0.3224752839849868),
    6: (5.511166572570801, 0.30441288799675487),
}


@pytest.mark.parametrize(("world_size", "layout"), [(1, ()), (2, ("parallel.tensor_model_parallel_size=2",))])
def test_a_run_goes_on_from_it(ranks: RankPool, tmp_path: Path, world_size: int, layout: tuple[str, ...]) -> None:
    """Weights, masters and moments: without the moments step 4 would already be another one."""
    corpus = write_formula_corpus(tmp_path / "formula", num_documents=40, end=256)
    shutil.copytree(KEPT, tmp_path / "run" / KEPT.name)
    steps = pretrain_on_ranks(ranks, world_size, corpus, tmp_path / "run", *layout, base=RECIPE)
    assert {step: (row["loss"], row["grad_norm"]) for step, row in steps.items()} == {
        step: pytest.approx(values, rel=1e-5) for step, values in FOLLOWED.items()
    }


def test_its_weights_can_be_read(tmp_path: Path) -> None:
    weights = CheckpointWeights(KEPT)
    assert weights.has_masters
    assert weights.model.hidden_size == 16
