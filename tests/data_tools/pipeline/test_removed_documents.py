"""Documents of finished stages that are removed: the same corpora, on less disk, and made again only when needed."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_tools.cli import main
from data_tools.corpus.verify import verify
from data_tools.engine import removed_documents
from data_tools.engine.executor import InProcessExecutor, UnderWay
from data_tools.engine.runner import Share
from data_tools.engine.task import Manifest, Task
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import RunSummary, run_pipeline
from tests.data_tools.pipeline.small_pipelines import english, write_input
from tests.data_tools.pipeline.test_dedup_kills import kill, num_finished

NUM_DOCUMENTS = 120
BEFORE_LAST = ("01-read", "02-normalise", "03-exact_dedup", "04-fuzzy_dedup")
LAST = "05-decontaminate"


def texts(first: int = 0) -> list[str]:
    """Some of them equal, some with a word changed."""
    out = []
    for number in range(first, first + NUM_DOCUMENTS):
        words = [f"w{random.Random(1000 * (number % 70) + place).randrange(10**6)}" for place in range(40)]
        if number % NUM_DOCUMENTS >= 100:
            words[number % 40] = "changed"
        out.append(" ".join(words))
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two inputs, one with a bad record, and a benchmark that two of the documents hold."""
    write_input(tmp_path / "web.jsonl", texts(), bad_after=30)
    write_input(tmp_path / "books.jsonl", [english(number) for number in range(60)])
    questions = [texts()[number] for number in (3, 5)]
    (tmp_path / "exam.json").write_bytes(b"\n".join(orjson.dumps({"text": text}) for text in questions))
    return tmp_path


def write(
    folder: Path, output: str, *, head: str = "", drop: Sequence[str] = (), rows: int = 4, min_words: int = 6
) -> Path:
    """A pipeline of six stages, without those that ``drop`` names."""
    inputs = "".join(f"      - {{path: {one}, source: {one.stem}}}\n" for one in sorted(folder.glob("*.jsonl")))
    stages = {
        "normalise": "",
        "exact_dedup": ", bucket_documents: 50",
        "fuzzy_dedup": f", bands: 6, rows: {rows}, min_jaccard: 0.5",
        "decontaminate": f", min_words: {min_words}, benchmarks: [{{name: exam, path: {folder}/exam.json}}]",
        "tokenize": ", tokens_in_memory: 2000",
    }
    path = folder / f"{output}.yaml"
    path.write_text(
        f"output: {folder / output}\n{head}stages:\n  - kind: read\n    split_bytes: 12000\n    inputs:\n{inputs}"
        + "".join(f"  - {{kind: {kind}{options}}}\n" for kind, options in stages.items() if kind not in drop)
    )
    return path


LAST_ONLY = "keep_documents: last\n"


def run(path: Path, executor: InProcessExecutor | None = None, share: Share | None = None) -> RunSummary:
    return run_pipeline(load_pipeline(path), executor or InProcessExecutor(), share)


def documents(output: Path, stage: str) -> list[Path]:
    """The shards of a stage."""
    return sorted((output / "stages" / stage).glob("part-??????.jsonl.zst"))


def checksums(output: Path) -> dict[str, str]:
    """SHA-256 of every file but those that hold times or paths, or say what was removed."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.suffix not in (".json", ".lock")
    }


def without_removed(files: dict[str, str]) -> dict[str, str]:
    """Without the shards that `last` removes."""
    gone = re.compile(rf"stages/(?:{'|'.join(BEFORE_LAST)})/part-\d+\.jsonl\.zst")
    return {name: checksum for name, checksum in files.items() if not gone.fullmatch(name)}


def disk(output: Path) -> int:
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


def assert_equal_but_for_removed(ours: Path, keeping: Path) -> None:
    assert checksums(ours) == without_removed(checksums(keeping))
    for stage in BEFORE_LAST:
        assert documents(keeping, stage)
        # Nothing else goes: manifests, counts, bad and dropped documents, hashes.
        kept = {path.name for path in (ours / "stages" / stage).rglob("*.json")} - {"removal.json"}
        assert kept == {path.name for path in (keeping / "stages" / stage).rglob("*.json")}


class Watch(InProcessExecutor):
    """Looks at the stages whenever tasks are begun.

    Attributes:
        seen: number of the stage, and of those with documents, when each phase begins.
        operations: operation and name of every task.
        most_disk: bytes of all files, at the most.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.seen: list[tuple[int, list[int]]] = []
        self.operations: list[tuple[str, str]] = []
        self.most_disk = 0

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        tasks = list(tasks)
        if tasks:
            stages = sorted((self._output / "stages").iterdir())
            having = [int(one.name[:2]) for one in stages if documents(self._output, one.name)]
            stage = next((one for one in stages if Path(tasks[0].folder).is_relative_to(one)), stages[-1])
            self.seen.append((int(stage.name[:2]), having))
            self.operations += [(task.operation, task.name) for task in tasks]
        yield from super().run(tasks, under_way)
        self.most_disk = max(self.most_disk, disk(self._output))


def test_less_disk_and_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeping, ours = Watch(folder / "all"), Watch(folder / "last")
    whole = run(write(folder, "all"), keeping)
    summary = run(write(folder, "last", head=LAST_ONLY), ours)
    assert summary.stages == whole.stages
    assert (whole.removed_bytes, whole.stages[-1]["records_out"]) == (0, 129)
    assert_equal_but_for_removed(folder / "last", folder / "all")
    removed = sum(path.stat().st_size for stage in BEFORE_LAST for path in documents(folder / "all", stage))
    assert summary.removed_bytes == removed > 0
    # Not only in the end: beside the documents that a stage reads there are none.
    assert ours.most_disk < keeping.most_disk - removed // 2
    assert all(having in ([stage - 1], [stage - 1, stage], []) for stage, having in ours.seen)
    assert {stage for stage, having in ours.seen if not having} == {1}
    assert keeping.seen[-1] == (6, [1, 2, 3, 4, 5])
    assert capsys.readouterr().err == ""
    for name in ("web", "books"):
        verify(folder / "last/corpora" / name)


def test_a_finished_run_is_found_finished(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder, "out", head=LAST_ONLY)
    first = run(path)
    before = checksums(folder / "out")
    for head in (LAST_ONLY, ""):  # Without the setting nothing is made again that nobody asks for.
        again = run(write(folder, "out", head=head))
        assert again.tasks_done == 0
        assert again.tasks_skipped == run(path).tasks_skipped > 0
        assert again.removed_bytes == 0
        assert again.stages == first.stages
        assert checksums(folder / "out") == before
    assert capsys.readouterr().err == ""


def test_a_run_that_kept_all_removes_them_when_told(folder: Path) -> None:
    run(write(folder, "all"))
    path = write(folder, "out")
    run(path)
    assert main(["run", str(path), "--workers", "1", "--keep-documents", "last"]) == 0
    assert_equal_but_for_removed(folder / "out", folder / "all")


def test_all_brings_them_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(write(folder, "all"))
    path = write(folder, "out", head=LAST_ONLY)
    run(path)
    assert main(["run", str(path), "--workers", "1", "--keep-documents", "all"]) == 0
    err = capsys.readouterr().err
    for stage in BEFORE_LAST:
        expected = (
            f"qwen-data: stage {stage[3:]}: its documents were removed (keep_documents: last), and this run keeps"
        )
        assert expected in err
    assert checksums(folder / "out") == checksums(folder / "all")
    assert not list((folder / "out").rglob("removal.json"))
    assert run(write(folder, "out")).stages == whole.stages


@pytest.mark.parametrize(
    ("changed", "needs", "again"),
    [
        ({"min_words": 7}, "fuzzy_dedup", ["read", "normalise", "exact_dedup", "fuzzy_dedup"]),
        ({"rows": 3}, "exact_dedup", ["read", "normalise", "exact_dedup"]),
        ({"drop": ["normalise"]}, "read", ["read"]),
        ({"drop": ["decontaminate"]}, "", []),
    ],
)
def test_a_changed_setting_has_them_made_again(
    changed: dict[str, Any], needs: str, again: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(write(folder, "all", **changed))
    run(write(folder, "out", head=LAST_ONLY))
    capsys.readouterr()
    watch = Watch(folder / "out")
    summary = run(write(folder, "out", head=LAST_ONLY, **changed), watch)
    err = capsys.readouterr().err
    assert summary.stages == expected.stages
    ours, theirs = (checksums(folder / name / "corpora") for name in ("out", "all"))
    assert ours == theirs
    if again:
        assert f"the documents of {needs} that it reads were removed (keep_documents: last)" in err
        assert f"; made again: {', '.join(again)}\n" in err
        assert err.count("made again") == 1
    else:
        # What is now the last stage keeps its documents, and so it needs those before it.
        assert "stage fuzzy_dedup: its documents were removed (keep_documents: last), and this run keeps them" in err
        assert "stage fuzzy_dedup: is not finished" in err
    # Of the stages before nothing but the documents is made: no hashes, no signatures.
    if changed == {"min_words": 7}:
        done = {operation for operation, _ in watch.operations}
        assert done >= {"read", "map", "exact_dedup_apply", "fuzzy_apply", "decontaminate"}
        assert not done & {"exact_dedup_hash", "exact_dedup_group", "fuzzy_sign", "fuzzy_check", "fuzzy_star"}
    last = summary.stages[-2]["name"]
    having = [one.name[3:] for one in (folder / "out/stages").iterdir() if documents(folder / "out", one.name)]
    assert last in having
    assert not {*having} & {"read", "exact_dedup"}


def test_a_new_input_needs_some_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(write(folder, "out", head=LAST_ONLY))
    write_input(folder / "zine.jsonl", texts(1000))
    expected = run(write(folder, "all"))
    summary = run(write(folder, "out", head=LAST_ONLY))
    assert summary.stages == expected.stages
    assert_equal_but_for_removed(folder / "out", folder / "all")
    assert "stage exact_dedup: is not finished" in capsys.readouterr().err


def test_counts_of_tasks_are_those_of_tasks(folder: Path) -> None:
    """Each once, done or skipped, however often its stage was looked at."""
    found = []
    for name, head in (("all", ""), ("out", LAST_ONLY)):
        run(write(folder, name, head=head))
        again = run(write(folder, name, head=head, rows=3))
        found.append((again.tasks_done, again.tasks_done + again.tasks_skipped))
    (kept_done, kept), (removed_done, removed) = found
    assert kept == removed
    assert kept_done < removed_done


def test_files_that_somebody_else_took_are_made_again(folder: Path) -> None:
    """Only what `removal.json` names, with its checksum, may be absent."""
    run(write(folder, "all"))
    path = write(folder, "out", head=LAST_ONLY)
    run(path)
    first, second = documents(folder / "out", LAST)[:2]
    first.unlink()
    second.write_bytes(b"damaged")
    assert run(path).tasks_done > 0
    assert_equal_but_for_removed(folder / "out", folder / "all")
    marker = folder / "out/stages/01-read/removal.json"
    for content in (b"{", orjson.dumps({"by": "x", "documents": {"part-000000.jsonl.zst": "0" * 64}})):
        marker.write_bytes(content)
        assert run(path).tasks_done > 0
        assert_equal_but_for_removed(folder / "out", folder / "all")


class Killed(BaseException):
    """Stands for a kill at this moment."""


def test_killed_at_every_step_of_the_removal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, write_atomically = Path.unlink, removed_documents.write_atomically
    steps = 0

    def step(most: int) -> None:
        nonlocal steps
        if steps == most:
            raise Killed
        steps += 1

    @contextmanager
    def killed_after(most: int) -> Iterator[None]:
        nonlocal steps
        steps = 0

        def unlinking(path: Path, missing_ok: bool = False) -> None:
            if re.fullmatch(r"part-\d+\.jsonl\.zst", path.name):
                step(most)
            unlink(path, missing_ok=missing_ok)

        def writing(path: Path, content: bytes) -> None:
            step(most)
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlinking)
            patch.setattr(removed_documents, "write_atomically", writing)
            yield

    drop = ("fuzzy_dedup", "decontaminate")
    with killed_after(-1):
        run(write(folder, "whole", head=LAST_ONLY, drop=drop))
    num_steps, expected = steps, checksums(folder / "whole")
    assert num_steps > 8
    for number in range(num_steps):
        output = f"killed-{number}"
        path = write(folder, output, head=LAST_ONLY, drop=drop)
        with killed_after(number), pytest.raises(Killed):
            run(path)
        assert run(path).tasks_skipped > 0
        assert checksums(folder / output) == expected
        assert run(path).tasks_done == 0


def kill_when_made_again(path: Path, output: Path, stage: str) -> None:
    """Starts a run and kills it once a stage has documents, if it is still going on then."""
    command = [sys.executable, "-m", "data_tools", "run", str(path), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and not documents(output, stage):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.parametrize("num_points", [3, pytest.param(24, marks=pytest.mark.faults)])
def test_killed_at_seeded_points(num_points: int, folder: Path) -> None:
    """First a run that removes, then the same one with other settings, so that stages are made again."""
    for name, rows in (("all", 4), ("changed", 3)):
        run(write(folder, name, rows=rows))
    num_tasks = num_finished(folder / "all")
    drawn = random.Random(num_points)
    last = num_tasks - 20
    for number in range(num_points):
        output = f"killed-{number}"
        path = write(folder, output, head=LAST_ONLY)
        point = drawn.randrange(number * last // num_points, (number + 1) * last // num_points)
        newest = kill(path, folder / output, point, drawn.random() * 0.01)
        if number % 3 != 2:
            run(path)
            assert_equal_but_for_removed(folder / output, folder / "all")
        # With other settings from wherever it is; killed once more on the way, and gone on from there.
        path = write(folder, output, head=LAST_ONLY, rows=3)
        kill_when_made_again(path, folder / output, drawn.choice(BEFORE_LAST))
        run(path)
        assert_equal_but_for_removed(folder / output, folder / "changed")
        print(f"{point:>4} of {num_tasks}  same  {newest}")


def test_array_jobs_leave_them_and_do_not_make_them_again(folder: Path) -> None:
    path = write(folder, "out", head=LAST_ONLY)
    run(path, share=Share(0, 1))
    assert all(documents(folder / "out", stage) for stage in (*BEFORE_LAST, LAST))
    run(path)
    assert not any(documents(folder / "out", stage) for stage in BEFORE_LAST)
    assert run(path, share=Share(0, 1)).tasks_done == 0
    changed = write(folder, "out", head=LAST_ONLY, rows=3)
    with pytest.raises(DataError, match=r"stage fuzzy_dedup: .* array jobs do not make them again: run once without"):
        run(changed, share=Share(0, 1))


def test_inspection_says_what_is_gone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(write(folder, "out", head=LAST_ONLY))
    out = str(folder / "out")
    assert main(["inspect", out]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    for stage in BEFORE_LAST:
        assert lines[stage[3:]].endswith("documents removed (keep_documents: last)")
    for stage in ("decontaminate", "tokenize"):
        assert "removed" not in lines[stage]
    assert main(["inspect", out, "--stage", "exact_dedup"]) == 0
    shown = capsys.readouterr().out
    assert "its documents were removed (keep_documents: last)" in shown
    assert "exact_duplicate" in shown
    assert main(["inspect", out, "--stage", "exact_dedup", "--sample", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "exact_dedup: its documents were removed (keep_documents: last); --reason shows those" in error
    assert main(["inspect", out, "--stage", "exact_dedup", "--sample", "2", "--reason", "exact_duplicate"]) == 0
    assert capsys.readouterr().out.count("---") == 2
    assert main(["inspect", out, "--stage", "decontaminate", "--sample", "2"]) == 0
    assert capsys.readouterr().out.count("---") == 2
    assert main(["report", out]) == 0
    (folder / "out/pipeline.json").unlink()
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    assert capsys.readouterr().out.count("finished, documents removed (keep_documents: last)") == 4


def test_another_run_takes_what_is_left(folder: Path) -> None:
    run(write(folder, "all"))
    run(write(folder, "last", head=LAST_ONLY))
    for name in ("all", "last"):
        arguments = ["stage", "normalise", str(folder / name), "--output", str(folder / f"{name}-2"), "--workers", "1"]
        assert main([*arguments, "--keep-documents", "last"]) == 0
        assert documents(folder / name, LAST)  # Those of another run are never removed.
    assert checksums(folder / "last-2") == checksums(folder / "all-2")


def test_other_values_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(write(folder, "out", head="keep_documents: some\n"))]) == 2
    assert "keep_documents=some" in capsys.readouterr().err
    assert not (folder / "out").exists()
