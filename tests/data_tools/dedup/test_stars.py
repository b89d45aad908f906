"""Clusters in bounded memory: slices of files, stars, rounds; the results of the union-find that holds everything."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from data_tools.dedup import components
from data_tools.dedup.buckets import write_edges
from data_tools.dedup.sliced_file import SliceWriter, batched, read_slice, slice_numbers
from data_tools.dedup.stars import EDGE, LargeStar, SmallStar, edge_records
from data_tools.engine.executor import InProcessExecutor, UnderWay
from data_tools.engine.runner import Runner, Share
from data_tools.engine.task import Manifest, Task, TaskResult, write_manifest
from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.stages import cluster_rounds, cluster_tasks
from data_tools.stages.cluster_tasks import REMOVED, SIZES, join_pairs

Pairs = npt.NDArray[np.uint64]


@pytest.mark.parametrize("buffer_bytes", [1, 100, 10**6])
def test_a_slice_has_its_records_in_their_order(tmp_path: Path, buffer_bytes: int) -> None:
    generator = np.random.default_rng(2)
    added: list[list[int]] = [[] for _ in range(8)]
    with SliceWriter(tmp_path / "file", 8, np.dtype("<u8"), buffer_bytes) as writer:
        for size in (0, 1, 30, 7):
            records = generator.integers(0, 100, size, dtype=np.uint64)
            slices = generator.integers(0, 7, size)
            writer.add(slices, records)
            for number, record in zip(slices.tolist(), records.tolist(), strict=True):
                added[number].append(record)
    for number in range(8):
        found = [one for chunk in read_slice(tmp_path / "file", np.dtype("<u8"), number) for one in chunk.tolist()]
        assert found == added[number]


def test_a_damaged_file_of_slices_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with SliceWriter(path, 2, EDGE) as writer:
        writer.add(np.array([0, 1, 1]), edge_records(np.arange(3, dtype=np.uint64), np.arange(3, dtype=np.uint64)))
    content = path.read_bytes()
    assert len(content) == 3 * 16 + 3 * 8 + 2 * 8
    wrong_place = content[:48] + b"\xff" * 8 + content[56:]
    for damaged in (content[1:], content[:-1], content[:-8] + b"\xff" * 8, b"", wrong_place):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"file: .*delete it and run again"):
            list(read_slice(path, EDGE, 0))
    path.write_bytes(content)
    with pytest.raises(DataError, match="are no file of 2 slices"):
        list(read_slice(path, EDGE, 2))


def test_slices_go_by_the_top_bits() -> None:
    values = np.array([0, 2**62 - 1, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert slice_numbers(values, 1).tolist() == [0, 0, 0, 0, 0]
    assert slice_numbers(values, 4).tolist() == [0, 0, 1, 2, 3]


def test_arrays_are_cut_and_put_together() -> None:
    arrays = [np.arange(size) for size in (0, 2, 3, 10, 1)]
    found = list(batched(iter(arrays), 4))
    assert np.array_equal(np.concatenate(found), np.concatenate(arrays))
    assert max(map(len, found)) < 8
    assert min(map(len, found[:-1])) >= 4


def chunks_of(edges: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
    return batched(iter([edges]), 3)


def rounds(pairs: Pairs) -> tuple[dict[int, int], int]:
    """The stars that rounds in one slice come to, and how many rounds."""
    edges = edge_records(pairs[:, 1], pairs[:, 0])
    for number in range(1, 100):
        both = np.concatenate([edges, edge_records(edges["other"], edges["node"])])
        large = LargeStar(partial(chunks_of, both))
        edges = np.concatenate([np.empty(0, dtype=EDGE), *large.edges()])
        small = SmallStar(partial(chunks_of, edges))
        edges = np.concatenate([np.empty(0, dtype=EDGE), *small.edges()])
        if not large.moved and not small.moved:
            return dict(edges.tolist()), number
    raise AssertionError("no end")


def random_pairs(seed: int, documents: int, edges: int) -> Pairs:
    generator = np.random.default_rng(seed)
    numbers = np.unique(generator.integers(0, 2**64, documents, dtype=np.uint64))
    pairs = np.sort(generator.choice(numbers, (edges, 2)), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


@pytest.mark.parametrize("seed", range(20))
def test_rounds_come_to_the_components(seed: int) -> None:
    pairs = random_pairs(seed, 60, 5 + 4 * seed)
    found = components([pairs])
    is_other = found.documents != found.survivors
    expected = dict(zip(found.documents[is_other].tolist(), found.survivors[is_other].tolist(), strict=True))
    assert rounds(pairs)[0] == expected


def test_a_chain_takes_few_rounds() -> None:
    order = np.random.default_rng(1).permutation(500).astype(np.uint64)
    stars, number = rounds(np.sort(np.stack([order[1:], order[:-1]], axis=1), axis=1))
    assert stars == dict.fromkeys(range(1, 500), 0)
    assert number <= 10


def manifest_of(folder: Path, name: str, pairs: Pairs) -> Manifest:
    write_edges(folder / f"{name}.npy", pairs)
    task = Task(operation="fuzzy_group", folder=str(folder), name=name, options={}, inputs=())
    return write_manifest(task, TaskResult(outputs=[f"{name}.npy"], values={"edges": len(pairs)}))


def joined(folder: Path, pairs: Sequence[Pairs], copies: Sequence[Pairs], num_documents: int) -> tuple[bytes, bytes]:
    folder.mkdir()
    grouped = [manifest_of(folder, f"band-000-part-{number:04d}", one) for number, one in enumerate(pairs)]
    files: list[FileRange] = [
        manifest_of(folder, f"part-{number:06d}", one).output(f"part-{number:06d}.npy")
        for number, one in enumerate(copies)
    ]
    clusters = join_pairs(Runner(InProcessExecutor()), folder, grouped, files, num_documents, 1000)
    return clusters.path(REMOVED).read_bytes(), clusters.path(SIZES).read_bytes()


def expected_files(folder: Path, pairs: Sequence[Pairs], copies: Sequence[Pairs]) -> tuple[bytes, bytes]:
    """What the union-find that holds everything gives."""
    found = components(pairs)
    survivors, sizes = found.cluster_sizes(np.concatenate([np.empty((0, 2), dtype=np.uint64), *copies]))
    np.save(folder / "removed.npy", found.removed)
    np.save(folder / "sizes.npy", np.stack([survivors, sizes.astype(np.uint64)], axis=1))
    return (folder / "removed.npy").read_bytes(), (folder / "sizes.npy").read_bytes()


def test_the_same_bytes_in_one_task_and_in_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_tasks, "_MOST_SLICES", 4)
    pairs = [random_pairs(seed, 300, 90) for seed in (1, 1, 2)]
    chooser = random.Random(1)
    # Of documents in clusters and of others; the last one has the greatest number that there is.
    some = [number for number in np.unique(np.concatenate(pairs)).tolist() if chooser.random() < 0.5]
    counted = np.array([[number, 2 + place % 5] for place, number in enumerate([*some, 2**64 - 1])], dtype=np.uint64)
    pairs.append(np.array([[counted[0, 0], 2**64 - 1]], dtype=np.uint64))
    copies = [counted[::2], counted[1::2], counted[:0]]
    expected = expected_files(tmp_path, pairs, copies)
    for number_documents in (10**6, 300, 60):
        assert joined(tmp_path / str(number_documents), pairs, copies, number_documents) == expected
    assert not list((tmp_path / "1000000").glob("round-*"))
    # As many tasks contracted the pairs.
    assert len(orjson.loads((tmp_path / "60" / "lists" / "round-001-large.json").read_bytes())) > 5
    (left,) = (tmp_path / "60").glob("round-*")
    assert left.name.endswith("-small")
    assert left.name > "round-002"
    assert len(list(left.glob("*.manifest.json"))) == 4


class Interrupted(Exception):
    """A run ends here."""


class FewTasks(InProcessExecutor):
    """Does so many tasks and no more."""

    def __init__(self, count: int) -> None:
        self.left = count

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        for task in tasks:
            if not self.left:
                raise Interrupted
            self.left -= 1
            yield from super().run([task], under_way)


class Rounds:
    """Pairs that take several rounds in four slices, joined by as many runs as it takes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.pairs = [random_pairs(seed, 300, 90) for seed in (1, 2, 3)]
        self.grouped = [manifest_of(folder, f"band-000-part-{n:04d}", one) for n, one in enumerate(self.pairs)]

    def run(self, most_tasks: int = 10**6, num_documents: int = 60) -> Runner:
        runner = Runner(FewTasks(most_tasks))
        self.clusters = join_pairs(runner, self.folder, self.grouped, [], num_documents, 1000)
        return runner

    @property
    def files(self) -> tuple[bytes, bytes]:
        return self.clusters.path(REMOVED).read_bytes(), self.clusters.path(SIZES).read_bytes()

    @property
    def num_halves(self) -> int:
        return len(list(self.folder.glob("round-*")))


@pytest.fixture
def few_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_tasks, "_MOST_SLICES", 4)


@pytest.mark.usefixtures("few_slices")
def test_a_run_that_is_interrupted_goes_on_from_the_last_half_of_a_round(tmp_path: Path) -> None:
    whole = Rounds(tmp_path / "whole")
    num_tasks = whole.run().tasks_done
    assert num_tasks > 40
    assert whole.files == expected_files(tmp_path, whole.pairs, [])
    assert not (tmp_path / "whole/stars").exists()
    for step in (2, 7):
        parts = Rounds(tmp_path / f"step-{step}")
        done = 0
        while True:
            try:
                done += parts.run(step).tasks_done
                break
            except Interrupted:
                done += step
                # What is left was made of the one before, which stays until all of it is there.
                assert parts.num_halves <= 2
        # Nothing was done twice.
        assert done == num_tasks
        assert parts.files == whole.files


@pytest.mark.usefixtures("few_slices")
def test_a_run_that_is_killed_before_it_removes_what_it_does_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds(tmp_path / "rounds")

    def killed(*_: object) -> None:
        raise Interrupted

    for _ in range(3):
        with monkeypatch.context() as broken:
            broken.setattr(cluster_rounds, "_remove_needless", killed)
            with pytest.raises(Interrupted):
                rounds.run()
        rounds.folder.joinpath("round-099-large").mkdir(exist_ok=True)
        with pytest.raises(Interrupted):
            rounds.run(5)
    rounds.run()
    assert rounds.num_halves == 1
    assert rounds.files == expected_files(tmp_path, rounds.pairs, [])


@pytest.mark.usefixtures("few_slices")
def test_rounds_that_are_done_are_found(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "rounds")
    num_tasks = rounds.run().tasks_done
    expected = rounds.files
    (half,) = rounds.folder.glob("round-*")
    assert rounds.run().tasks_done == 0
    # A file of the half that is kept, its manifest, or the note of it is damaged: all is done again.
    for path in (half / "part-000001.stars", half / "part-000002.manifest.json", rounds.folder / "rounds.json"):
        path.write_bytes(path.read_bytes()[:-9])
        again = rounds.run()
        assert again.tasks_done > num_tasks // 2
        assert rounds.files == expected
    # What anybody may have written there is no reason to fail.
    content = rounds.folder.joinpath("rounds.json").read_bytes()
    for other in (b'{"pairs"', b"[]", content.replace(b'"pairs":"', b'"pairs":"0')):
        rounds.folder.joinpath("rounds.json").write_bytes(other)
        rounds.run()
        assert rounds.files == expected


@pytest.mark.usefixtures("few_slices")
def test_other_options_and_pairs_leave_no_rounds_of_before(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "rounds")
    rounds.run()
    expected = rounds.files
    rounds.run(num_documents=40)
    assert rounds.num_halves == 1
    assert rounds.files == expected
    rounds.run(num_documents=10**6)
    assert rounds.num_halves == 0
    assert not rounds.folder.joinpath("rounds.json").exists()
    assert rounds.files == expected
    rounds.run()
    rounds.pairs = rounds.pairs[:2]
    rounds.grouped = rounds.grouped[:2]
    rounds.run()
    assert rounds.files == expected_files(tmp_path, rounds.pairs, [])


@pytest.mark.usefixtures("few_slices")
def test_array_jobs_leave_the_rounds_and_find_those_of_a_whole_run(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "rounds")
    share = Runner(InProcessExecutor(), Share(0, 1))
    rounds.clusters = join_pairs(share, rounds.folder, rounds.grouped, [], 60, 1000)
    expected = rounds.files
    assert rounds.num_halves > 3
    assert rounds.run().tasks_done == 0
    assert rounds.num_halves == 1
    share = Runner(InProcessExecutor(), Share(0, 1))
    rounds.clusters = join_pairs(share, rounds.folder, rounds.grouped, [], 60, 1000)
    assert share.tasks_done == 0
    assert rounds.files == expected


def test_no_pairs_at_all(tmp_path: Path) -> None:
    assert joined(tmp_path / "none", [], [], 10) == expected_files(tmp_path, [], [])
