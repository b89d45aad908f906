"""How far tasks are, as workers of every kind tell it, and what the bar makes of it."""

import io
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from rich.progress import Task as RichTask
from rich.progress import TaskID

from data_tools.engine.executor import Executor, InProcessExecutor, ProcessExecutor
from data_tools.engine.task import Task
from data_tools.engine.task_bar import TaskBar, task_bar
from data_tools.engine.thread_executor import ThreadExecutor
from data_tools.io import work_done
from data_tools.io.file_range import FileRange
from data_tools.io.progress import BYTES, SilentProgress
from data_tools.io.progress_columns import RateColumn
from data_tools.io.work_done import WorkDone, count_bytes, count_documents, counted, counting

OPTIONS = {"source": "s", "format": "jsonl", "text_key": "text", "keep": [], "extractor": "", "max_document_bytes": 999}


def read_tasks(folder: Path, num_bytes: int) -> list[Task]:
    """Two tasks that each read a file of so many bytes."""
    line = b'{"text": "' + b"word " * 30 + b'"}\n'
    tasks = []
    for number in range(2):
        path = folder / f"{number}.jsonl"
        path.write_bytes(line * (num_bytes // len(line)))
        status = path.stat()
        file = FileRange(path=str(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
        name, where = f"part-{number:06d}", str(folder / f"out-{num_bytes}")
        tasks.append(Task(operation="read", folder=where, name=name, options=OPTIONS, inputs=(file,)))
    return tasks


def add_event(events: list[tuple[str, float]], task: str, share: float) -> None:
    events.append((task, share))


@pytest.mark.parametrize("make", [InProcessExecutor, lambda: ProcessExecutor(2), lambda: ThreadExecutor(2)])
def test_every_executor_tells(make: Callable[[], Executor], tmp_path: Path) -> None:
    """A task that takes long enough is told of before it is done, however fast the machine is."""
    num_bytes = 16 << 20
    while True:
        events: list[tuple[str, float]] = []
        with closing(make()) as executor:
            for manifest in executor.run(read_tasks(tmp_path, num_bytes), partial(add_event, events)):
                events.append((manifest.name, 2.0))
        if len(events) > 2:
            break
        num_bytes *= 2
        assert num_bytes <= 1 << 30
    for name in ("part-000000", "part-000001"):
        shares = [share for task, share in events if task == name]
        assert shares == sorted(shares)
        assert shares[-1] == 2.0
    assert all(0 < share <= 1.01 for _, share in events if share != 2.0)


def test_nothing_is_told_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_done, "_TELL_SECONDS", 0.0)

    def refuse(*unused: object) -> None:
        raise AssertionError

    monkeypatch.setattr(WorkDone, "_add", refuse)
    with task_bar("reading", read_tasks(tmp_path, 3 << 20), []) as bar:
        assert bar.under_way is None
    for executor in (InProcessExecutor(), ThreadExecutor(2)):
        assert len(list(executor.run(read_tasks(tmp_path, 3 << 20), None))) == 2
    stream = io.BytesIO(b"x")
    assert counted(stream) is stream


class Sum:
    """A bar that adds up."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance(self, amount: int) -> None:
        self.steps.append(amount)


def test_a_bar_counts_every_task_once() -> None:
    progress = Sum()
    bar = TaskBar(progress, {"a": 100, "b": 50, "c": 0})
    told = bar.under_way
    assert told is not None
    for name, share in (("a", 0.1), ("b", 0.5), ("a", 0.4), ("a", 0.05), ("a", 0.3), ("b", 7.0), ("a", 0.41)):
        told(name, share)  # Begun again somewhere else it has less, and an estimate may be too high.
    assert sum(progress.steps) == 41 + 50
    for name in ("a", "b"):
        bar.finished(name)
        told(name, 0.9)  # Comes late.
    bar.finished("c")
    told("of another phase", 0.5)
    assert sum(progress.steps) == 150
    assert min(progress.steps) >= 0
    assert TaskBar(SilentProgress(), {}).under_way is None


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(work_done, "_TELL_SECONDS", 0.0)
    return []


def test_only_what_makes_up_the_size_counts(shares: list[float]) -> None:
    with counting(WorkDone(shares.append, documents=4, input_bytes=10, num_bytes=10)):
        count_documents(1)
        count_bytes(5)
        assert counted(io.BytesIO(b"12345")).read() == b"12345"
        count_documents(2)
    count_documents(1)
    assert shares == [0.25, 0.75]
    shares.clear()
    with counting(WorkDone(shares.append, documents=None, input_bytes=10, num_bytes=20)):
        stream = counted(io.BytesIO(b"12345"))
        count_documents(3)
        count_bytes(5)
    stream.read(2)  # By whom and when does not matter.
    assert shares == [0.25, 0.45]


def test_it_is_told_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(work_done.time, "monotonic", lambda: now)
    told: list[float] = []
    work = WorkDone(told.append, documents=1000, input_bytes=0, num_bytes=0)
    for _ in range(1000):
        work.add_documents(1)
        now += 0.001
    assert told == pytest.approx([0.251, 0.501, 0.751])


@pytest.mark.parametrize(("begun", "rate"), [(0, "100 bytes/s"), (400, "60 bytes/s")])
def test_the_rate_in_the_end_is_that_of_what_was_done(begun: int, rate: str) -> None:
    now = 0.0
    task = RichTask(TaskID(0), "t", 1000, begun, _get_time=lambda: now, fields={"begun": begun})
    task.start_time = 0.0
    now = 10.0
    task.completed, task.finished_time, task.finished_speed = 1000, 10.0, 12345.0
    assert RateColumn(BYTES).render(task).plain == rate
