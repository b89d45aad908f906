"""Rounds that bring every document to the smallest of its cluster; of all of them the last half stays on the disk.

Each half of a round is made of the files of the one before alone. When all of its tasks are finished `rounds.json` says
so, and then what it was made of goes. A run that is started again finds the half that `rounds.json` names, if it was
made of the same pairs, and goes on from there.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from data_tools.engine.input_list import write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, intact
from data_tools.io.atomic_file import write_atomically
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import remove_tree
from data_tools.io.small_json import SmallFileError, build, is_count, read_object

CONTRACTED = "stars"
_STATE = "rounds.json"
_HALF = re.compile(r"round-\d{3,}-(?:large|small)")


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What `rounds.json` says.

    Attributes:
        pairs: hash of the keys of the tasks that contracted the pairs.
        halves: how many halves of rounds are done.
        moved: edges that changed in the one before the last.
        tasks: hash of the keys of the last one's tasks.
    """

    pairs: str
    halves: int
    moved: int
    tasks: str


@dataclass(frozen=True)
class _State:
    """The stars after so many halves, and how many edges changed in the half before."""

    halves: int
    moved_before: int
    stars: Sequence[Manifest]

    @property
    def moved(self) -> int:
        return sum(one.values["moved"] for one in self.stars) if self.halves else 0

    @property
    def is_last(self) -> bool:
        """Whether a whole round has changed nothing."""
        return self.halves > 0 and self.halves % 2 == 0 and not self.moved and not self.moved_before


def stars_of_all(
    runner: Runner, folder: Path, contract: Sequence[Task], options: dict[str, int | str]
) -> Sequence[Manifest]:
    """Stars around the smallest document of each cluster.

    Args:
        runner: does the tasks.
        folder: of the stage.
        contract: tasks that each contract some of the pairs to stars, in ``folder`` / `CONTRACTED`.
        options: of every task of a round, `num_slices` among them.
    Returns:
        manifests with NAME.stars.
    """
    if len(contract) <= 1:
        if runner.is_alone:
            _remove_halves(folder, [])
            (folder / _STATE).unlink(missing_ok=True)
        return runner.run(folder / CONTRACTED, contract)
    pairs = _hash_of([task.key() for task in contract])
    num_slices = int(options["num_slices"])
    state = _kept(folder, pairs, num_slices)
    if state is None:
        state = _State(0, 0, runner.run(folder / CONTRACTED, contract))
    else:
        runner.tasks_skipped += num_slices
        if runner.is_alone:
            _remove_needless(folder, state)  # The earlier run may have been killed before it did.
    while not state.is_last:
        half = _half(state.halves)
        kind = half.rpartition("-")[2]
        stars = over_slices(runner, "fuzzy_star", folder / half, state.stars, {**options, "half": kind})
        state = _State(state.halves + 1, state.moved, stars)
        if runner.is_alone:  # Another array job may not have come as far.
            _note(folder, pairs, state)
            _remove_needless(folder, state)
    return state.stars


def over_slices(
    runner: Runner,
    operation: str,
    folder: Path,
    before: Sequence[Manifest],
    options: dict[str, int | str],
    *shared: FileRange,
    suffix: str = "stars",
) -> list[Manifest]:
    """One task for each slice of what the tasks ``before`` wrote."""
    files = [one.output(f"{one.name}.{suffix}") for one in before]
    num_slices = int(options["num_slices"])
    files_list = write_input_list(folder.parent / "lists" / f"{folder.name}.json", files)
    tasks = [
        Task(
            operation=operation,
            folder=str(folder),
            name=_slice(number),
            options={**options, "slice": number},
            inputs=(files_list, *shared),
            read_bytes=sum(one.size_bytes for one in files) // num_slices,
        )
        for number in range(num_slices)
    ]
    return runner.run(folder, tasks)


def _half(number: int) -> str:
    """Name of the folder of a half, from 0."""
    return f"round-{number // 2 + 1:03d}-{('large', 'small')[number % 2]}"


def _slice(number: int) -> str:
    return f"part-{number:06d}"


def _hash_of(keys: Sequence[str]) -> str:
    return hashlib.sha256("".join(keys).encode()).hexdigest()


def _kept(folder: Path, pairs: str, num_slices: int) -> _State | None:
    """Where an earlier run came to; None if there was none of these pairs, or its files are not whole."""
    try:
        kept = build(_Kept, read_object(folder / _STATE), str(folder / _STATE))
    except SmallFileError:
        return None
    if kept.pairs != pairs or not (is_count(kept.halves) and kept.halves and is_count(kept.moved)):
        return None
    found = [intact(folder / _half(kept.halves - 1), _slice(number)) for number in range(num_slices)]
    stars = [one for one in found if one is not None and is_count(one.values.get("moved"))]
    if len(stars) < num_slices or _hash_of([one.key for one in stars]) != kept.tasks:
        return None
    return _State(kept.halves, kept.moved, stars)


def _note(folder: Path, pairs: str, state: _State) -> None:
    """Writes where the rounds are."""
    tasks = _hash_of([one.key for one in state.stars])
    kept = _Kept(pairs=pairs, halves=state.halves, moved=state.moved_before, tasks=tasks)
    write_atomically(folder / _STATE, orjson.dumps(asdict(kept)))


def _remove_needless(folder: Path, state: _State) -> None:
    """Removes what nobody needs who goes on from the half that is noted."""
    remove_tree(folder / CONTRACTED, folder)
    # Later halves may be those of array jobs, finished already; after the last there are none but of other pairs.
    done = [_half(number) for number in range(state.halves)]
    later = [] if state.is_last else [name for name in _halves(folder) if name not in done]
    _remove_halves(folder, [done[-1], *later])


def _halves(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if _HALF.fullmatch(path.name) and path.is_dir()]


def _remove_halves(folder: Path, wanted: Collection[str]) -> None:
    for name in _halves(folder) if folder.is_dir() else []:
        if name not in wanted:
            remove_tree(folder / name, folder)
