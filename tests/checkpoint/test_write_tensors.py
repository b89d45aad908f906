"""Planning of a save: the files are those of torch's own planning, and ranks tell each other of it once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from qwen_megatron.checkpoint.plan_exchange import RankPlan, described, parse
from qwen_megatron.checkpoint.write_tensors import PlanMemory, write_tensors
from qwen_megatron.errors import CheckpointError
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of
from tests.support.training import pretrain_on_ranks

COLLECTIVES = (
    "all_gather_into_tensor",
    "all_reduce",
    "all_gather",
    "all_gather_object",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "scatter",
    "scatter_object_list",
)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Collectives that are called inside, by name."""
    calls: Counter[str] = Counter()

    def counting(name: str) -> Any:
        original = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for name in COLLECTIVES:
            stack.enter_context(mock.patch.object(dist, name, counting(name)))
        yield calls


def own_tensors(seed: int, *extra: str, dtype: torch.dtype = torch.float32) -> dict[str, ShardedTensor]:
    """Two rectangles of a tensor for each rank, one of another, and a whole tensor that rank 0 writes."""
    rank, size = dist.get_rank(), dist.get_world_size()
    values = torch.Generator().manual_seed(seed + rank)
    shards = {}
    for name, rows, columns in (("layers", 4, 3), ("layers", 2, 3), ("embedding", 5, 2), *((e, 1, 1) for e in extra)):
        first = 4 * size if (rows, name) == (2, "layers") else 0
        total = 6 * size if name == "layers" else rows * size
        offset = (first + rank * rows, 0)
        shards[f"{name} {offset}"] = ShardedTensor(
            key=name,
            data=torch.randn(rows, columns, generator=values).to(dtype),
            dtype=dtype,
            local_shape=(rows, columns),
            global_shape=(total, columns),
            global_offset=offset,
            axis_fragmentations=None,
            replica_id=(0, 0, 0),
        )
    shards["norm"] = ShardedTensor(
        key="norm",
        data=torch.full((3,), float(seed)),
        dtype=torch.float32,
        local_shape=(3,),
        global_shape=(3,),
        global_offset=(0,),
        axis_fragmentations=None,
        replica_id=(0, 0, rank),
    )
    return shards


def save(folder: str, tensors: dict[str, ShardedTensor], memory: PlanMemory | None) -> dict[str, int]:
    from qwen_megatron.checkpoint.storage import HashingFileSystem

    Path(folder).mkdir(exist_ok=True)
    with counted() as calls:
        write_tensors(tensors, Path(folder), HashingFileSystem(), memory)
    dist.barrier()
    return dict(calls)


def save_in_turns(directory: str) -> list[dict[str, int]]:
    """Collectives of each of a row of saves."""
    with groups_of():
        memory = PlanMemory()
        rank = dist.get_rank()
        rows = [
            own_tensors(1),
            own_tensors(2),
            own_tensors(3),
            own_tensors(4, dtype=torch.bfloat16),
            own_tensors(5, dtype=torch.bfloat16),
            # Other keys on one rank only.
            {key: shard for key, shard in own_tensors(6).items() if rank == 0 or "embedding" not in key},
        ]
        # A part of a tensor that nobody writes any more is an error of the plan; the tensor is cut instead.
        for shard in rows[-1].values():
            if shard.key == "embedding":
                shard.global_shape = (5, 2)
        return [save(f"{directory}/{number}", tensors, memory) for number, tensors in enumerate(rows)]


def test_only_what_has_changed_is_planned_anew(ranks: RankPool, tmp_path: Path) -> None:
    for calls in ranks.run(3, save_in_turns, directory=str(tmp_path)):
        planned = [bool(save.get("gather")) for save in calls]
        assert planned == [True, False, False, True, False, True]
        for number in (1, 2, 4):
            assert calls[number] == {"all_reduce": 3}
        assert not any(name.endswith(("object", "object_list")) for save in calls for name in save)
    metadata = [(tmp_path / str(number) / ".metadata").read_bytes() for number in range(6)]
    assert metadata[0] == metadata[1] == metadata[2]
    assert metadata[3] == metadata[4]
    assert len({metadata[0], metadata[3], metadata[5]}) == 3


def save_beside_torch(directory: str) -> None:
    import torch.distributed.checkpoint as dcp
    from megatron.core.dist_checkpointing.strategies.torch import (
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    from qwen_megatron.checkpoint.storage import FinalFileWriter, HashingFileSystem, without_zip_checksums
    from qwen_megatron.checkpoint.write_tensors import new_planner

    with groups_of():
        memory = PlanMemory()
        for number in (1, 2):
            save(f"{directory}/ours {number}", own_tensors(number), memory)
            theirs = Path(directory) / f"theirs {number}"
            theirs.mkdir(exist_ok=True)
            flat, _, _ = _replace_state_dict_keys_with_sharded_keys(dict(own_tensors(number)), True)
            with without_zip_checksums():
                writer = FinalFileWriter(theirs, HashingFileSystem())
                dcp.save(mcore_to_pyt_state_dict(flat, False), storage_writer=writer, planner=new_planner())


def test_files_are_those_of_torchs_own_planning(ranks: RankPool, tmp_path: Path) -> None:
    from qwen_megatron.checkpoint.read_tensors import SafeReader

    ranks.run(3, save_beside_torch, directory=str(tmp_path))
    for number in (1, 2):
        ours, theirs = tmp_path / f"ours {number}", tmp_path / f"theirs {number}"
        names = sorted(path.name for path in theirs.iterdir())
        assert sorted(path.name for path in ours.iterdir()) == names
        assert [name for name in names if name.endswith(".distcp")] == [f"__{rank}_0.distcp" for rank in range(3)]
        for name in names:
            if name.endswith(".distcp"):
                assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        left, right = SafeReader(ours).read_metadata(), SafeReader(theirs).read_metadata()
        assert left.state_dict_metadata == right.state_dict_metadata
        assert list(left.storage_data.items()) == list(right.storage_data.items())
        assert [index.index for index in left.storage_data] == [index.index for index in right.storage_data]


def fail_between(directory: str) -> tuple[str, int]:
    """A save, one that fails on rank 1 or on rank 0 at the end, and a good one."""
    with groups_of():
        memory = PlanMemory()
        save(f"{directory}/0", own_tensors(1), memory)
        Path(f"{directory}/1").mkdir(exist_ok=True)
        if dist.get_rank() == 0:
            Path(f"{directory}/1/__1_0.distcp").mkdir()
        dist.barrier()
        with pytest.raises(CheckpointError) as caught:
            save(f"{directory}/1", own_tensors(2, "more"), memory)
        dist.barrier()
        save(f"{directory}/2", own_tensors(3), memory)
        return str(caught.value), memory.times_gathered


def test_a_save_that_fails_on_one_rank_leaves_what_was_agreed(ranks: RankPool, tmp_path: Path) -> None:
    for text, times in ranks.run(3, fail_between, directory=str(tmp_path)):
        assert text.startswith(f"rank 1: {tmp_path}/1/__1_0.distcp: cannot be written")
        assert times == 1
    assert (tmp_path / "0" / ".metadata").read_bytes() == (tmp_path / "2" / ".metadata").read_bytes()


def write_the_same(directory: str) -> str:
    """Two ranks that both believe that a tensor is theirs."""
    with groups_of():
        tensors = own_tensors(1)
        for shard in tensors.values():
            shard.global_offset = (0, *shard.global_offset[1:])
            shard.replica_id = (0, 0, 0)
        with pytest.raises(CheckpointError) as caught:
            save(directory, tensors, None)
        return str(caught.value)


def test_two_ranks_that_write_the_same_are_refused_everywhere(ranks: RankPool, tmp_path: Path) -> None:
    told = ranks.run(2, write_the_same, directory=str(tmp_path / "x"))
    assert told[0] == told[1]
    assert "two ranks would write the same" in told[0] or "do not fit together" in told[0]


def test_a_run_plans_its_saves_once(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    layout = ("parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2")
    settings = ("training.exit_iter=3", "checkpoint.save_interval=1", *layout)
    pretrain_on_ranks(ranks, 4, byte_corpus, tmp_path, *settings)
    hashes = set()
    for step in (1, 2, 3):
        folder = tmp_path / f"iter_000000{step}"
        hashes.add(hashlib.sha256((folder / ".metadata").read_bytes()).hexdigest())
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert sorted(files) == sorted({*os.listdir(folder)} - {"manifest.json"})
    assert len(hashes) == 1


GOOD = ["__0_0.distcp", [["key", [4, 3], "float32", [[[0, 0], [4, 3], 0, 100]]]]]


def test_a_plan_travels_as_json() -> None:
    plan = parse(GOOD)
    assert isinstance(plan, RankPlan)
    assert json.loads(json.dumps(described(plan))) == GOOD
    assert parse([None, []]) == RankPlan(None, ())


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["../x", []],
        ["a/b", []],
        [None, GOOD[1]],
        ["f", [["key", [4], "object", [[[0], [4], 0, 1]]]]],
        ["f", [["key", [4], "float32", [[[0, 0], [4], 0, 1]]]]],
        ["f", [["key", [4], "float32", [[[-1], [4], 0, 1]]]]],
        ["f", [["key", [4], "float32", [[[0], [True], 0, 1]]]]],
        ["f", [[3, [4], "float32", [[[0], [4], 0, 1]]]]],
    ],
)
def test_what_is_no_plan_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse(value)
