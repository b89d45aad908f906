"""`qwen-megatron evaluate`: from a checkpoint to a table, and what is refused before a model is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.evaluation import evaluate
from qwen_megatron.evaluation.task_file import FOLDER
from tests.evaluation.byte_model import write_byte_model, write_tasks
from tests.evaluation.scripted import write_benchmarks, write_jsonl
from tests.support.ranks import RankPool

# Short answers: every new token costs a forward pass.
SUMS = """name: sums
about: sums
source: made up
kind: answer
test: {file: sums.jsonl}
examples: {file: sums.jsonl}
shots: 1
fields: {sum: text, result: value}
question: "{sum} ="
answer: " {result}"
scorer: number
target: "{result}"
max_new_tokens: 6
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its export, and benchmarks."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_byte_model(folder)
    write_benchmarks(folder / "data")
    write_jsonl(folder / "data" / "sums.jsonl", [{"sum": f"{number} + 1", "result": number + 1} for number in range(9)])
    (folder / "sums.yaml").write_text(SUMS, encoding="utf-8")
    return folder


def command(folder: Path, tasks: str, *arguments: str) -> list[str]:
    """The command on the model of bytes; "sums" is the task file made here."""
    chosen = ",".join(str(folder / "sums.yaml") if task == "sums" else task for task in tasks.split(","))
    return ["evaluate", str(folder / "hf"), "--tasks", chosen, "--data", str(folder / "data"), *arguments]


def test_a_table_and_files(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = ["--output", str(tmp_path / "results.json"), "--samples", str(tmp_path / "samples.jsonl")]
    assert main(command(folder, "ceval,sums", "--max-length", "1024", *files)) == 0
    printed = capsys.readouterr().out
    assert "| ceval | plain | 5     | accuracy | 1 " in printed
    assert "| sums  | plain | 1     | accuracy | 9 " in printed
    assert "Qwen-7B: Qwen Technical Report (arXiv 2309.16609), table 2" in printed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [task["task"] for task in results["tasks"]] == ["ceval", "sums"]
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["task"] for sample in samples] == ["ceval", *["sums"] * 9]
    assert samples[0]["prompt"].endswith("答案：")
    assert samples[0]["completion"] in "ABCD"


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "sums", "--json", "--chat")) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (task["form"], task["shots"], task["num_asked"]) == ("chat", 0, 9)


def test_code_is_run_where_it_is_allowed(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    task = (FOLDER / "humaneval.yaml").read_text(encoding="utf-8")
    (tmp_path / "code.yaml").write_text(task.replace("max_new_tokens: 512", "max_new_tokens: 6"), encoding="utf-8")
    samples = tmp_path / "samples.jsonl"
    options = ["--samples", str(samples), "--allow-code-execution"]
    assert main(command(folder, str(tmp_path / "code.yaml"), *options)) == 0
    assert "| pass@1 " in capsys.readouterr().out
    assert "Error" in json.loads(samples.read_text(encoding="utf-8"))["note"]


def evaluate_job(arguments: list[str], pipeline_size: int) -> int:
    """The command as one rank of a job."""
    return main([*arguments, "--pipeline-model-parallel-size", str(pipeline_size)])


def test_any_layout_gives_the_same_results(ranks: RankPool, folder: Path, tmp_path: Path) -> None:
    found = []
    for world_size, pipeline_size in ((1, 1), (4, 2)):
        out = tmp_path / f"{world_size}.json"
        arguments = command(folder, "ceval,sums", "--max-length", "1024", "--samples", str(out))
        statuses = ranks.run(world_size, evaluate_job, arguments=arguments, pipeline_size=pipeline_size)
        assert statuses == [0] * world_size
        found.append(out.read_text(encoding="utf-8"))
    assert found[0] == found[1]
    assert found[0].count("\n") == 10


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_code_that_is_not_allowed_is_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "check_sandbox", lambda: pytest.fail("was run"))
    error = refused(command(folder, "humaneval,mbpp,mmlu"), capsys)
    assert (
        "--tasks=humaneval,mbpp: would run code that the model wrote, and nothing was run; allow it with "
        "--allow-code-execution" in error
    )


def test_wrong_uses(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refused(["evaluate"], capsys)
    assert "SOURCE: give a checkpoint" in error
    assert "--tasks: give at least one name; --list shows them" in error
    error = refused(["evaluate", str(folder / "hf"), "--tasks", "mmlu"], capsys)
    assert "--tasks=mmlu: its questions are read from files; give their folder, --data FOLDER" in error
    error = refused(command(folder, "mmlu,nothing"), capsys)
    assert "--tasks=nothing: no such task" in error
    error = refused(command(folder, "mmlu", "--output", str(tmp_path), "--samples", "no/such/file"), capsys)
    assert f"--output={tmp_path}: is a folder; name a file" in error
    assert "--samples=no/such/file: no/such is not a folder; make it first" in error
    error = refused(command(folder, "math23k", "--max-length", "100"), capsys)
    assert "--max-length=100: completions of 512 tokens leave no room for a prompt" in error
    with pytest.raises(SystemExit) as ended:
        main(command(folder, "mmlu,"))
    assert ended.value.code == 2


def test_broken_questions_are_found_before_a_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"question": "1?"}])
    arguments = ["evaluate", "no/such/model", "--tasks", "gsm8k", "--data", str(tmp_path), "--shots", "0"]
    assert main(arguments) == 1
    assert "gsm8k/test.jsonl:1: no field 'answer'" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "mbpp: Python functions to write from a sentence and three tests" in printed
    assert "3 shots; mbpp.jsonl: task_id, text, test_setup_code, test_list" in printed


def test_tasks_of_lm_eval(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tasks(tmp_path, 3)
    include = ["--lm-eval-include", str(tmp_path)]
    files = ["--output", str(tmp_path / "results.json"), "--samples", str(tmp_path / "samples.jsonl")]
    assert main(command(folder, "lm-eval:our_choice,sums", *include, *files)) == 0
    assert "| lm-eval:our_choice |" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert math.isfinite(results["harness"]["results"]["our_choice"]["acc,none"])
    samples = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["task"] for line in samples] == [*["sums"] * 9, *["lm-eval:our_choice"] * 3]


def test_lm_eval_is_an_extra(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
    assert main(command(folder, "lm-eval:our_choice")) == 1
    assert (
        "lm-evaluation-harness is not installed; run: pip install 'qwen-megatron[evaluate]'" in capsys.readouterr().err
    )
