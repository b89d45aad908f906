"""What must hold for the conversion of any checkpoint; for tests that have one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from qwen_megatron.checkpoint.state import saved_model_config
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.from_hf import from_hf
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.convert.verify import verify
from qwen_megatron.inference.loading import single_process
from tests.convert.random_weights import formats_of


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, by the library alone."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_tensors(left: Path, right: Path) -> None:
    """Same names, dtypes, shapes and bytes."""
    ours, theirs = load_folder(left), load_folder(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert tensor.shape == theirs[name].shape, name
        assert tensor.view(torch.uint8).equal(theirs[name].view(torch.uint8)), name


def check_conversion(checkpoint: Path, directory: Path) -> None:
    """Exports a checkpoint of any layout, compares with transformers, imports it, and exports it again.

    Must be called outside of any process group.

    Args:
        checkpoint: An `iter_NNNNNNN` folder.
        directory: A folder to work in.
    """
    source = CheckpointWeights(checkpoint)
    formats = formats_of(saved_model_config(checkpoint))
    for hf_format in formats:
        for dtype in ("bf16", "fp32"):
            exported = directory / f"{hf_format}-{dtype}"
            to_hf(checkpoint, exported, hf_format=hf_format, dtype=dtype)
            with single_process("cpu") as groups:
                report = verify(checkpoint, exported, groups)
            assert report.is_good, report
            imported, again = directory / "imported", directory / "again"
            from_hf(exported, imported, overwrite=True)
            to_hf(imported, again, hf_format=hf_format, overwrite=True)
            assert_same_tensors(again, exported)
    if source.has_masters:
        masters = load_folder(directory / f"{formats[0]}-fp32")
        weights = load_folder(directory / f"{formats[0]}-bf16")
        assert all(torch.equal(masters[name].bfloat16(), weights[name]) for name in weights)
