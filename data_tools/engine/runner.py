"""Runs the phases of a stage: skips what is finished, shares the rest among processes, machines or array jobs."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.engine.executor import Executor
from data_tools.engine.own_files import sweep as sweep_folder
from data_tools.engine.removed_documents import Removed, RemovedInputsError, finished_without
from data_tools.engine.task import QUARANTINE_FILE, STAGE_FILE, Manifest, Task, documents_file, finished
from data_tools.engine.task_bar import task_bar
from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import require_below

_POLL_SECONDS = 0.1


class SupersededError(Exception):
    """What another array job would have left for this one is used up: the task that it was for is finished."""


@dataclass(frozen=True)
class Share:
    """Which tasks are ours when several array jobs work on one pipeline: those whose number is index modulo count."""

    index: int
    count: int


class Runner:
    """Runs tasks, each at most once for the same inputs and options.

    Args:
        executor: where tasks run.
        share: which tasks are ours; None: all.
        wait_seconds: how long to wait for those of others.
        root: the folder that all tasks must work below; None: not checked.
    Attributes:
        tasks_done: tasks done by this run.
        tasks_skipped: tasks found finished.
        superseded_by: task that makes it vain to wait for others when it is finished; None: no such task.
        removed: what was removed from the folder of the stage and is not missed there; None: nothing.
    """

    def __init__(
        self,
        executor: Executor,
        share: Share | None = None,
        wait_seconds: float = 86400,
        root: Path | None = None,
    ) -> None:
        self._executor = executor
        self._root = root
        self._share = share
        self._wait_seconds = wait_seconds
        self.title = ""
        self.tasks_done = 0
        self.tasks_skipped = 0
        self.superseded_by: Task | None = None
        self.removed: Removed | None = None
        self._done_now: set[str] = set()
        # Paths of documents: removed, with the tasks that made them counted as finished; and to be made again.
        self._absent: set[str] = set()
        self._needed: set[str] = set()

    def run(self, folder: Path, tasks: Sequence[Task], *, sweep: bool = True) -> list[Manifest]:
        """Does the unfinished of ``tasks``, which must not depend on each other.

        Files in ``folder`` that tasks of killed or differently configured runs left there are removed.

        Args:
            folder: where all of the tasks work; nothing else may.
            tasks: with different names.
            sweep: False if other files in ``folder`` are to stay.
        Returns:
            the manifests in the order of the tasks.
        Raises:
            DataError: a task failed, another array job has not finished its share in time, or a link leads out of
                the root.
            SupersededError: `superseded_by` was finished by another array job.
            RemovedInputsError: tasks that are not finished read documents which were removed; nothing was begun.
        """
        if self._root is not None:
            require_below(folder, self._root)
        folder.mkdir(parents=True, exist_ok=True)
        done: dict[str, Manifest] = {}
        for task in tasks:
            if (manifest := self._finished(task)) is not None:
                done[task.name] = manifest
        self.tasks_skipped += sum(str(manifest.path(name)) not in self._done_now for name, manifest in done.items())
        open_tasks = [(number, task) for number, task in enumerate(tasks) if task.name not in done]
        self.require(one for _, task in open_tasks for one in task.inputs)
        ours = [task for number, task in open_tasks if self._is_ours(number)]
        earlier = [task for number, task in enumerate(tasks) if task.name in done and self._is_ours(number)]
        with task_bar(self.title, ours, earlier) as bar:
            for manifest in self._executor.run(ours, bar.under_way):
                done[manifest.name] = manifest
                self.tasks_done += 1
                self._done_now.add(str(manifest.path(manifest.name)))
                bar.finished(manifest.name)
        if self._share is None and sweep:
            _sweep(folder, done.values())
        if self._share is not None:
            self._wait_for_others([task for _, task in open_tasks if task.name not in done], done)
        return [done[task.name] for task in tasks]

    def require(self, files: Iterable[FileRange]) -> None:
        """Lets ``files`` pass if none of them was removed; asks for those that were.

        Raises:
            RemovedInputsError: some were; when the stage that made them is run again, they are made again.
        """
        if lost := self._absent.intersection(one.path for one in files):
            self._absent -= lost
            self._needed |= lost
            raise RemovedInputsError(lost)

    def note_removed(self, paths: Iterable[str]) -> None:
        """These documents are not there any more."""
        self._absent.update(paths)
        self._needed.difference_update(paths)

    @property
    def is_alone(self) -> bool:
        """Whether no other array job works on the same output."""
        return self._share is None

    def _finished(self, task: Task) -> Manifest | None:
        manifest = finished(task)
        if manifest is not None or self.removed is None:
            return manifest
        manifest = finished_without(task, self.removed)
        if manifest is None:
            return None
        path = str(manifest.path(documents_file(task.name)))
        if path in self._needed:
            return None
        self._absent.add(path)
        return manifest

    def _is_ours(self, number: int) -> bool:
        return self._share is None or number % self._share.count == self._share.index

    def _wait_for_others(self, tasks: Sequence[Task], done: dict[str, Manifest]) -> None:
        deadline = time.monotonic() + self._wait_seconds
        for task in tasks:
            while (manifest := finished(task)) is None:
                if self.superseded_by is not None and finished(self.superseded_by) is not None:
                    raise SupersededError
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{task.folder}/{task.name}: another shard has not finished it in {self._wait_seconds:g} "
                        "seconds; start the missing shards, then this one again"
                    )
                time.sleep(_POLL_SECONDS)
            done[task.name] = manifest


def _sweep(folder: Path, manifests: Iterable[Manifest]) -> None:
    wanted = {STAGE_FILE, QUARANTINE_FILE}
    for manifest in manifests:
        wanted.add(f"{manifest.name}.manifest.json")
        wanted.update(manifest.outputs)
    sweep_folder(folder, wanted)
