"""Fixtures shared by the tests of conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def qwen1_mini() -> Path:
    """A Hugging Face folder in the released layout of the first series."""
    return FIXTURES / "qwen1-mini"


@pytest.fixture(scope="session")
def imported_mini(qwen1_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its weights."""
    from qwen_megatron.convert.from_hf import from_hf

    out = tmp_path_factory.mktemp("imported") / "qwen1-mini"
    from_hf(qwen1_mini, out)
    return out


@pytest.fixture(scope="session")
def trained_bf16(byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a bf16 run: its fp32 master weights differ from the weights the model computes with."""
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.pretrain import pretrain
    from tests.support.training import SMALL

    directory = tmp_path_factory.mktemp("trained")
    overrides = (
        "training.precision=bf16",
        "training.train_iters=2",
        "training.eval_interval=2",
        "optimizer.lr_warmup_iters=1",
        "model.num_layers=2",
        f"data.blend=[{byte_corpus}]",
        f"checkpoint.directory={directory}",
    )
    pretrain(resolve(load_config(None, [*SMALL, *overrides]), 1))
    return directory / "iter_0000002"
