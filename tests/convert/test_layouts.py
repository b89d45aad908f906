"""Conversion and parallel layouts: tensors that were split over processes, a vocabulary that does not divide."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.convert.random_weights import TINY, TINY3, RandomWeights
from tests.convert.round_trip import assert_same_tensors, check_conversion
from tests.support.ranks import RankPool
from tests.support.training import DEEP, pretrain_on_ranks

# 67 rows of vocabulary become 68 on two tensor-parallel ranks.
GROUPED = dataclasses.replace(TINY, num_query_groups=2)
UNTIED = {"qwen1": TINY, "qwen2": GROUPED, "qwen3": TINY3}
MODELS = UNTIED | {
    f"{name}-tied": dataclasses.replace(model, tie_word_embeddings=True) for name, model in UNTIED.items()
}


def load_and_save(tensor_size: int, pipeline_size: int, source: str, out: str, *, from_folder: bool) -> None:
    """Loads weights on this rank and writes what it holds; rank 0 makes a checkpoint of it all."""
    import torch.distributed as dist
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.mapping import apply_factories

    from qwen_megatron.checkpoint.load import load_model
    from qwen_megatron.checkpoint.manifest import hashed, write_manifest
    from qwen_megatron.checkpoint.sharded_state import sharded_weights
    from qwen_megatron.checkpoint.state import saved_model_config
    from qwen_megatron.checkpoint.storage import HashingFileSystem
    from qwen_megatron.checkpoint.write_tensors import write_tensors
    from qwen_megatron.convert.hf_folder import HfFolder
    from qwen_megatron.convert.load_hf_weights import load_hf_weights
    from qwen_megatron.model.builder import build_model, unwrapped
    from qwen_megatron.parallel.groups import build_groups, start_process_group
    from qwen_megatron.platforms import get_platform

    platform = get_platform("cpu")
    platform.prepare()
    groups = build_groups(
        tensor_model_parallel_size=tensor_size,
        pipeline_model_parallel_size=pipeline_size,
        device=start_process_group(platform, 60),
        timeout_seconds=60,
    )
    folder, checkpoint = Path(source) / "hf", Path(source) / "checkpoint"
    qwen = unwrapped(build_model(saved_model_config(checkpoint), groups, precision="fp32", seed=5))
    if from_folder:
        load_hf_weights(HfFolder(folder), qwen)
        if groups.is_first_stage and groups.tp.rank() == tensor_size - 1:
            # The row that the layout added; the weights were random before.
            assert not qwen.embedding.word_embeddings.weight[-1].any()
    else:
        load_model(checkpoint, qwen)
    if groups.rank == 0:
        Path(out).mkdir()
    dist.barrier()
    weights = sharded_weights(qwen, "model.")
    apply_factories(weights)
    write_tensors(weights, Path(out), HashingFileSystem())
    if groups.rank == 0:
        save_config(CheckpointingConfig("torch_dist", 1), out)
        shutil.copy(checkpoint / "state.json", Path(out) / "state.json")
        write_manifest(Path(out), {path.name: hashed(path) for path in Path(out).iterdir()})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("from_folder", [False, True], ids=["checkpoint", "folder"])
def test_weights_survive_a_split_into_tensor_and_pipeline_ranks(
    name: str, from_folder: bool, ranks: RankPool, tmp_path: Path
) -> None:
    from qwen_megatron.convert.from_hf import write_weights
    from qwen_megatron.convert.name_map import Format
    from qwen_megatron.convert.to_hf import to_hf

    hf_format = Format(name.partition("-")[0])
    write_weights(RandomWeights(MODELS[name]), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "hf", hf_format=hf_format)
    ranks.run(
        4,
        load_and_save,
        tensor_size=2,
        pipeline_size=2,
        source=str(tmp_path),
        out=str(tmp_path / "split"),
        from_folder=from_folder,
    )
    to_hf(tmp_path / "split", tmp_path / "again", hf_format=hf_format)
    assert_same_tensors(tmp_path / "again", tmp_path / "hf")


def test_a_run_on_tensor_and_pipeline_ranks_is_converted(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    pretrain_on_ranks(
        ranks,
        4,
        byte_corpus,
        tmp_path / "run",
        "training.precision=bf16",
        "training.exit_iter=2",
        "parallel.tensor_model_parallel_size=2",
        "parallel.pipeline_model_parallel_size=2",
        "parallel.sequence_parallel=true",
        base=DEEP,
    )
    check_conversion(tmp_path / "run" / "iter_0000002", tmp_path)
