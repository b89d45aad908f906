"""The Python interface; tests/examples/test_notebook.py trains, exports and generates with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.errors import DataError
from qwen_megatron import api
from qwen_megatron.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, qwen_megatron.api; sys.exit(bool({'torch', 'megatron', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def settings_for(corpus: Path, directory: Path) -> list[str]:
    model = ["model.preset=tiny", "model.vocab_size=257", "training.seq_length=64", "training.global_batch_size=2"]
    run = ["training.train_iters=4", "data.eval_samples=0", f"data.blend=[{corpus}]", "logging.tensorboard=false"]
    return [*model, *run, f"checkpoint.directory={directory}"]


def test_everything_wrong_is_said_at_once(byte_corpus: Path, tmp_path: Path) -> None:
    settings = settings_for(byte_corpus, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        api.load(*settings, "optimizer.lr=fast", "data.blend=[nowhere]")
    assert len(caught.value.problems) == 2
    assert api.load(*settings).training.train_iters == 4
    assert not (tmp_path / "run").exists()


def test_several_processes_are_not_for_one(byte_corpus: Path, tmp_path: Path) -> None:
    config = api.load(*settings_for(byte_corpus, tmp_path / "run"), "parallel.tensor_model_parallel_size=2")
    with pytest.raises(ConfigError, match=r"parallel\.world_size=2: .* qwen-megatron launch"):
        api.train(config)


def test_what_a_callback_raises_ends_the_run(byte_corpus: Path, tmp_path: Path) -> None:
    def stop(record: object) -> None:
        raise LookupError("of the user's")

    with pytest.raises(LookupError, match="of the user's"):
        api.train(api.load(*settings_for(byte_corpus, tmp_path / "run")), on_step=stop)


def test_documents_of_another_vocabulary_have_no_text(byte_corpus: Path) -> None:
    assert api.open_corpus(byte_corpus).num_tokens > 0
    with pytest.raises(DataError, match="is not in Qwen's vocabulary"):
        api.document(byte_corpus, 0)
