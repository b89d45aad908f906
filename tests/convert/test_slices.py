"""Slices of a Hugging Face folder: read where they stand, once for all replicas, the bits of whole tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_megatron.convert import hf_folder
from qwen_megatron.convert.from_hf import write_weights
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.name_map import Format, entries, parts
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.errors import CheckpointError
from tests.convert.random_weights import SHAPES, RandomWeights, formats_of
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

GROUPED = SHAPES["grouped"]
FOLDERS = [(name, hf_format) for name, model in SHAPES.items() for hf_format in formats_of(model)]


@pytest.mark.parametrize(("name", "hf_format"), FOLDERS)
def test_runs_are_the_rows_that_merging_puts_there(name: str, hf_format: Format) -> None:
    """The two descriptions of the table, of whole tensors and of rows, are one."""
    model = SHAPES[name]
    for entry in entries(model):
        shapes = entry.hf_shapes(model, hf_format)
        numbered = iter(itertools.count())
        tensors = [torch.tensor([next(numbered) for _ in range(shape[0])]) for shape in shapes]
        columns = shapes[0][1:]
        spread = [rows.view(-1, *(1 for _ in columns)).expand(-1, *columns) for rows in tensors]
        merged = entry.merge(spread, model)
        merged = merged.flatten(1)[:, 0] if columns else merged
        rows = [tensors[run.tensor][run.start : run.stop] for run in entry.runs(model, hf_format)]
        assert torch.equal(torch.cat(rows), merged)
        assert merged.shape[0] == entry.shape(model)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Format], HfFolder]:
    """Every model in every format that can express it."""
    opened = {}
    for name, hf_format in FOLDERS:
        parent = tmp_path_factory.mktemp("folder")
        write_weights(RandomWeights(SHAPES[name]), parent / "checkpoint")
        to_hf(parent / "checkpoint", parent / "hf", hf_format=hf_format)
        opened[name, hf_format] = HfFolder(parent / "hf")
    return opened


def test_rows_read_where_they_belong_are_those_that_are_merged(
    folders: dict[tuple[str, Format], HfFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in folders.values():
        for part in parts(folder.model):
            merged = folder.read(part)
            with monkeypatch.context() as patch:
                patch.setattr(hf_folder, "READ_IN_PLACE_BYTES", 0)
                in_place = folder.read(part)
            assert in_place.dtype == merged.dtype
            assert torch.equal(in_place, merged)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_is_that_of_the_whole_part(folders: dict[tuple[str, Format], HfFolder], data: st.DataObject) -> None:
    folder = folders[data.draw(st.sampled_from(FOLDERS))]
    part = data.draw(st.sampled_from(list(parts(folder.model))))
    box = []
    for size in part.entry.shape(folder.model):
        start = data.draw(st.integers(0, size - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, size))))
    assert torch.equal(folder.read_box(part, tuple(box)), folder.read(part)[tuple(box)])


def load_both_ways(tensor_size: int, pipeline_size: int, folder: str) -> tuple[int, int, bool]:
    """Bytes this rank reads from the folder and bytes of its weights; whether they are those of whole tensors."""
    from unittest import mock

    from qwen_megatron.convert.load_hf_weights import held_shards, load_hf_weights
    from qwen_megatron.convert.weights import WeightSource
    from qwen_megatron.jobs import resume
    from qwen_megatron.model.builder import build_model, unwrapped
    from tests.support.trainables import weights_of

    class Whole:
        """The folder without slices."""

        def __init__(self, folder: HfFolder):
            self.model, self.dtype, self.read = folder.model, folder.dtype, folder.read

    read = 0
    original = HfFolder.read_tensor

    def counted(self: HfFolder, *arguments: object) -> torch.Tensor:
        nonlocal read
        tensor = original(self, *arguments)  # type: ignore[arg-type]
        read += tensor.nbytes
        return tensor

    with groups_of(tensor_size, pipeline_size) as groups:
        opened = HfFolder(Path(folder))
        source: WeightSource = Whole(opened)
        expected = unwrapped(build_model(opened.model, groups, precision="fp32", seed=5))
        load_hf_weights(source, expected)
        model = unwrapped(build_model(opened.model, groups, precision="fp32", seed=6))
        trainable = mock.Mock(models=[model], optimizer=None, groups=groups, model=opened.model)
        with mock.patch.object(HfFolder, "read_tensor", counted):
            resume.start_from_weights(Path(folder), trainable)
        shards = {id(shard.data): shard for shard in held_shards(model)}.values()
        same = all(
            torch.equal(left, right)
            for left, right in zip(
                weights_of(trainable).values(),
                weights_of(mock.Mock(models=[expected])).values(),
                strict=True,
            )
        )
        return read, sum(shard.data.nbytes for shard in shards), same


@pytest.mark.parametrize("name", ["grouped", "qwen3-tied"])
@pytest.mark.parametrize(
    ("tensor_size", "pipeline_size"), [(1, 1), (2, 1), (1, 2), (2, 2)], ids=["dp4", "tp2", "pp2", "tp2-pp2"]
)
def test_only_the_first_replica_reads_and_only_what_it_holds(
    name: str, tensor_size: int, pipeline_size: int, ranks: RankPool, tmp_path: Path
) -> None:
    # 67 rows of vocabulary become 68 on two tensor-parallel ranks: the last is in no file.
    write_weights(RandomWeights(SHAPES[name]), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "hf")
    layout = {"tensor_size": tensor_size, "pipeline_size": pipeline_size}
    answers = ranks.run(4, load_both_ways, folder=str(tmp_path / "hf"), **layout)
    replicas = 4 // (tensor_size * pipeline_size)
    for rank, (read, held, same) in enumerate(answers):
        assert same, rank
        is_first = rank // tensor_size % replicas == 0
        assert (0.9 * held < read <= held) if is_first else read == 0, (rank, read, held)


def fail_to_read(folder: str, failing: int) -> str:
    """The error of this rank when one reader cannot read a slice."""
    import os
    from unittest import mock

    from qwen_megatron.jobs import resume
    from qwen_megatron.model.builder import build_model, unwrapped

    def read_box(*arguments: object) -> torch.Tensor:
        raise CheckpointError(f"{folder}: rank {failing} cannot read it")

    with groups_of(2) as groups:
        model = unwrapped(build_model(GROUPED, groups, precision="fp32", seed=6))
        trainable = mock.Mock(models=[model], optimizer=None, groups=groups, model=GROUPED)
        broken = mock.patch.object(HfFolder, "read_box", read_box)
        with (
            broken if int(os.environ["RANK"]) == failing else mock.MagicMock(),
            pytest.raises(CheckpointError) as error,
        ):
            resume.start_from_weights(Path(folder), trainable)
        return str(error.value)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_a_reader_reaches_those_who_wait_for_it(failing: int, ranks: RankPool, tmp_path: Path) -> None:
    """Ranks 2 and 3 read nothing and would wait for ranks 0 and 1."""
    write_weights(RandomWeights(GROUPED), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "hf", hf_format=Format.QWEN2)
    told = ranks.run(4, fail_to_read, folder=str(tmp_path / "hf"), failing=failing, timeout_seconds=120)
    assert told == [f"{tmp_path / 'hf'}: rank {failing} cannot read it"] * 4
