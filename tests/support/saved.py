"""Checkpoints of models that were not trained."""

from __future__ import annotations

from pathlib import Path

from qwen_megatron.checkpoint.manifest import list_checkpoints


def save_once(directory: Path, *overrides: str) -> Path:
    """Trains one step on a small corpus and returns its checkpoint."""
    from tests.support.corpora import write_zero_corpus
    from tests.support.training import run_job

    corpus = write_zero_corpus(directory.with_name("zeros"), 4096)
    run_job(
        "pretrain",
        [
            *overrides,
            "training.train_iters=1",
            "optimizer.lr=1e-9",
            f"data.blend=[{corpus}]",
            f"checkpoint.directory={directory}",
        ],
    )
    return list_checkpoints(directory)[0]
