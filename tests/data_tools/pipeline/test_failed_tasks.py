"""What is known of tasks that failed, until they are done."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from data_tools.cli import main
from data_tools.engine.executor import InProcessExecutor, ProcessExecutor
from data_tools.engine.failures import failures, record_failure
from data_tools.engine.task import Task
from data_tools.errors import DataError
from data_tools.io.small_json import SmallFileError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import run_pipeline
from data_tools.stages import map as map_stage


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"text": f"text {k}"}) + b"\n" for k in range(20)))
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        f"output: {tmp_path / 'out'}\nstages:\n  - kind: read\n    inputs:\n      - {{path: {source}, source: a}}\n"
        "  - kind: normalise\n"
    )
    return path


def failing(task: Task) -> Any:
    raise DataError("the disk is full of water")


def test_a_run_that_stopped_names_the_tasks_that_failed(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(map_stage, "map_part", failing)
    with pytest.raises(DataError, match="full of water"):
        run_pipeline(load_pipeline(pipeline), InProcessExecutor())
    assert main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "read                        1 tasks done, finished" in shown
    assert "failed: 02-normalise/part-000000 (map, " in shown
    assert "the disk is full of water" in shown
    assert main(["inspect", out, "--json"]) == 0
    (task,) = orjson.loads(capsys.readouterr().out)["failed"]
    assert (task["task"], task["error"]) == ("02-normalise/part-000000", "the disk is full of water")
    assert main(["inspect", out, "--stage", "normalise"]) == 2

    monkeypatch.undo()
    run_pipeline(load_pipeline(pipeline), InProcessExecutor())
    assert main(["inspect", out]) == 0
    assert "failed" not in capsys.readouterr().out
    assert not list(failures(tmp_path))


def test_a_task_whose_process_ended_is_among_them(tmp_path: Path) -> None:
    # Without options the operation ends its process with a traceback, as a kill would without one.
    tasks = [
        Task(operation="read", folder=str(tmp_path), name=f"part-00000{number}", options={}, inputs=())
        for number in range(2)
    ]
    executor = ProcessExecutor(1)
    running = executor.run(tasks)
    try:
        with pytest.raises(DataError, match="ended with status 1"):
            next(running)
    finally:
        executor.close()
    ((name, failure),) = failures(tmp_path)
    assert (name, failure.operation) == ("part-000000", "read")
    assert "ended with status 1" in failure.error


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    record_failure(Task(operation="read", folder=str(tmp_path), name="all", options={}, inputs=()), "why")
    (path,) = tmp_path.iterdir()
    path.write_text('{"error": 3}')
    with pytest.raises(SmallFileError, match=r"all\.failed\.json"):
        list(failures(tmp_path))
