"""Every small file of checkpoints, runs and Hugging Face folders, mutated."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen_megatron.checkpoint import manifest, storage, unpickler
from qwen_megatron.checkpoint.state import CheckpointState, ModelState, config_sections, saved_model_config
from qwen_megatron.cli.logits import read_ids
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.convert import hf_config, hf_folder
from qwen_megatron.jobs import failure
from qwen_megatron.report.page import page_of
from qwen_megatron.report.run_files import read_run
from qwen_megatron.train.hooks.metrics import drop_rows_after
from qwen_megatron.train.hooks.wandb import run_id
from qwen_megatron.train.state import TrainState
from tests.checkpoint.test_unpickler import good_metadata
from tests.fuzz.small_file import Target, as_yaml, check_mutations, lines, valid

FAILURE: dict[str, Any] = {
    "error": "ValueError",
    "message": "x",
    "rank": 1,
    "host": "node7",
    "pid": 42,
    "attempt": 0,
    "step": 17,
    "phase": "forward",
    "samples": [64, 67],
    "time": "2026-11-25T00:00:00+00:00",
    "restart_helps": False,
    "lost_peer": False,
}
QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "layer_types": ["full_attention"],
}
ROWS = [
    {"step": 0, "eval_loss": 2.5, "perplexity": 12.0},
    {"step": 1, "loss": 2.5, "grad_norm": 1.0, "phase_seconds": {"forward": 1.0, "data": 0.5}, "consumed_tokens": 512},
    {"step": 2, "loss": 2.25, "grad_norm": 0.5, "tokens_per_second": 100.5, "model_flops_utilization": 0.25},
]
STARTS = [
    {"time": "2026-11-25T00:00:00+00:00", "step": step, "world_size": 4, "config": {"parallel": {"x": 2}, "a": {}}}
    for step in (0, 2)
]


def small_state() -> dict[str, Any]:
    config = resolve(load_config(None, ["model.preset=tiny"]))
    model = ModelState(
        config=config_sections(config)["model"], optimizer=[{"lr": 0.1, "betas": [0.9, 0.95], "step": 2}]
    )
    state = CheckpointState(
        train_state=TrainState(iteration=2, consumed_samples=8, consumed_tokens=512),
        models={"model": model},
        config=config_sections(config),
        data={"corpus": {"fingerprint": "f", "tokenizer": None, "consumed_samples": 8}},
        environment={"python": "3.11", "packages": {"torch": "2"}},
    )
    return dict(json.loads(state.to_json()))


def make_manifest(folder: Path) -> Any:
    (folder / "state.json").write_bytes(b"{}")
    return {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "files": {"state.json": {"size": 2, "sha256": "0" * 64}},
    }


def make_safetensors(folder: Path) -> bytes:
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, folder / "model.safetensors")
    return (folder / "model.safetensors").read_bytes()


def read_safetensors(folder: Path) -> None:
    hf_folder.open_safetensors(folder / "model.safetensors")


def make_ids(folder: Path) -> bytes:
    np.save(folder / "ids.npy", np.array([[1, 2, 3]]))
    return (folder / "ids.npy").read_bytes()


def make_index(folder: Path) -> Any:
    (folder / "model-1.safetensors").touch()
    return {"metadata": {"total_size": 5}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}


def page(folder: Path) -> str:
    return page_of(read_run(folder))


def metrics_and_page(folder: Path) -> None:
    page(folder)
    drop_rows_after(folder / "metrics.jsonl", 1)


def run_folder(name: str, content: Any) -> Callable[[Path], Any]:
    """A run's folder, one file of which is mutated."""

    def make(folder: Path) -> Any:
        (folder / "metrics.jsonl").write_bytes(lines(ROWS))
        (folder / "starts.jsonl").write_bytes(lines(STARTS))
        return content

    return make


TARGETS = {
    "manifest": Target(make=make_manifest, name="manifest.json", read=manifest.read_manifest),
    "state": Target(
        make=lambda folder: small_state(),
        name="state.json",
        read=lambda folder: (CheckpointState.read(folder), saved_model_config(folder)),
    ),
    "latest": Target(make=valid(b"iter_0000001\n"), name="latest", read=manifest.read_latest, dump=None),
    "format": Target(
        make=valid({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}),
        name="metadata.json",
        read=storage.check_format,
    ),
    "metadata": Target(
        make=valid(pickle.dumps(good_metadata(), 4)),
        name=".metadata",
        read=lambda folder: unpickler.read_metadata(folder / ".metadata"),
        dump=None,
    ),
    "failure": Target(
        make=valid(FAILURE),
        name="failure.json",
        read=lambda folder: (failure.refusal(folder, "a"), failure.retire_failure(folder)),
    ),
    "failure page": Target(make=run_folder("failure.json", FAILURE), name="failure.json", read=page),
    "metrics": Target(make=run_folder("metrics.jsonl", ROWS), name="metrics.jsonl", read=metrics_and_page, dump=lines),
    "starts": Target(make=run_folder("starts.jsonl", STARTS), name="starts.jsonl", read=page, dump=lines),
    "completion": Target(
        make=run_folder("completion.json", {"reason": "finished", "step": 2}), name="completion.json", read=page
    ),
    "wandb": Target(make=valid({"id": "abc"}), name="wandb.json", read=lambda folder: run_id(folder / "wandb.json")),
    "configuration": Target(
        make=valid({"model": {"preset": "tiny"}, "data": {"blend": {"a": 0.5, "b": 1}}, "optimizer": {"lr": 0.1}}),
        name="config.yaml",
        read=lambda folder: resolve(load_config(folder / "config.yaml")),
        dump=as_yaml,
    ),
    "qwen2": Target(make=valid(QWEN2), name="config.json", read=lambda f: hf_config.read_config(f / "config.json")),
    "qwen3": Target(
        make=valid(QWEN2 | {"model_type": "qwen3", "head_dim": 24, "attention_bias": False, "rope_scaling": None}),
        name="config.json",
        read=lambda f: hf_config.read_config(f / "config.json"),
    ),
    "index": Target(make=make_index, name=hf_folder.INDEX, read=hf_folder.weight_files),
    "safetensors": Target(make=make_safetensors, name="model.safetensors", read=read_safetensors, dump=None),
    "token ids": Target(make=make_ids, name="ids.npy", read=lambda folder: read_ids(folder / "ids.npy"), dump=None),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_whatever_is_in_the_file(target: Target, tmp_path: Path) -> None:
    check_mutations(target, tmp_path / "folder")
