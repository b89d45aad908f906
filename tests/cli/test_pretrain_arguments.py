"""`pretrain` up to the point where training would start: checks, exit statuses, what is printed by which rank."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_tools.stages.tokenize_files import tokenize
from qwen_megatron.cli.main import main
from qwen_megatron.errors import CheckpointError, ConfigError, DataError, PlatformError, TrainingError
from qwen_megatron.jobs.launcher import Launch
from qwen_megatron.libraries import without_compiler

ROOT = Path(__file__).parents[2]
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("qwen_megatron.cli.main.PATIENCE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a few hundred tokens in Qwen's vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"line {number} of a text"}) + "\n" for number in range(100)))
    tokenize([source], folder / "text")
    return folder / "text"


@pytest.fixture
def good(corpus: Path, tmp_path: Path) -> list[str]:
    """Settings of a run that could start."""
    return [
        "model.preset=tiny",
        "parallel.platform=cpu",
        "training.train_iters=20",
        "training.global_batch_size=8",
        "training.seq_length=16",
        f"data.blend=[{corpus}]",
        f"checkpoint.directory={tmp_path / 'run'}",
    ]


def problems(stderr: str) -> list[str]:
    """The numbered problems on stderr."""
    return [line.partition(". ")[2] for line in stderr.splitlines()[1:]]


def test_a_dry_run_of_a_good_configuration_prints_the_plan_and_writes_nothing(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *good, "--dry-run", "parallel.world_size=4", "parallel.tensor_model_parallel_size=2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "19,649,856 parameters" in out
    assert "4 processes: tensor 2 x pipeline 1 x data 2" in out
    assert "8 sequences of 16 tokens: 4 micro-batches of 1 on each replica" in out
    # 20 steps of 8 samples from a corpus of a few hundred tokens.
    assert re.search(r"/text: 2,560 tokens, 100\.0%, [0-9.]+ epochs\n", out)
    assert "warning" not in out
    assert main(["pretrain", *good, "--dry-run", "training.train_iters=200"]) == 0
    assert re.search(
        r"warning: data\.blend: more than 4 epochs of \S+/text \([0-9.]+\); repeated", capsys.readouterr().out
    )
    assert not (tmp_path / "run").exists()


def test_settings_corpora_and_folders_are_checked_together(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    bad = [
        "parallel.tensor_model_parallel_size=3",
        "training.train_itres=5",
        "optimizer.lr=fast",
        f"data.blend=[{tmp_path}/none]",
        f"checkpoint.directory={blocked}/run",
        f"checkpoint.init_from={tmp_path}/absent",
    ]
    assert main(["pretrain", *good, *bad, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qwen-megatron: 6 problems in the configuration:\n")
    assert [problem.partition("=")[0] for problem in problems(err)] == [
        "training.train_itres",
        "optimizer.lr",
        "parallel.tensor_model_parallel_size",
        "data.blend",
        "checkpoint.directory",
        "checkpoint.init_from",
    ]


def test_a_dry_run_is_quick_and_imports_neither_torch_nor_megatron(good: list[str]) -> None:
    """Good settings and bad ones, one command after the other in one process: what any of them imports is seen."""
    code = (
        "import contextlib, io, json, sys, time\n"
        "from qwen_megatron.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        status = main(arguments)\n"
        "    heavy = sorted({'torch', 'megatron', 'transformers'} & sys.modules.keys())\n"
        "    print('RESULT', json.dumps([status, said.getvalue(), heavy, time.process_time()]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    bad = (
        "parallel.tensor_model_parallel_size=3",
        "training.seed=${oc.env:HOME}",
        "training.train_iters=9**9**9",
        "training.seed=!!python/object/apply:os.getpid []",
        "training.train_itres=5",
    )
    commands = [["pretrain", "--dry-run", *good, *extra] for extra in ([], *([text] for text in bad))]
    process = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(process, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert [(status, "\n" in said) for status, said, _, _ in found] == [(0, False), *[(2, True)] * len(bad)]
    assert [heavy for _, _, heavy, _ in found] == [[]] * len(commands)
    # Processor time, what runs beside it does not count: of a whole process, and then of each command.
    before = 0.0
    for *_, seconds in found:
        assert seconds - before < 5
        before = seconds


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False), ("3", False)])
def test_under_a_launcher_rank_0_alone_prints_and_all_exit_with_2(
    rank: str, speaks: bool, good: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert main(["pretrain", *good, "training.global_batch_size=30"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    rule = "must be a multiple of training.micro_batch_size(1) x data_parallel_size(4) = 4; use 28 or 32"
    assert problems(err) == ([f"training.global_batch_size=30: {rule}"] if speaks else [])
    assert bool(err) == speaks


def test_under_a_launcher_the_whole_command_as_a_process(good: list[str]) -> None:
    environment = dict(os.environ) | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "qwen_megatron", "pretrain", *good, "model.num_layers=x"]
    silent = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert (silent.returncode, silent.stdout, silent.stderr) == (2, "", "")
    loud = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment | {"RANK": "0", "LOCAL_RANK": "0"},
    )
    assert loud.returncode == 2
    assert "model.num_layers=x: must be an integer" in loud.stderr


def test_files_missing_on_one_machine_are_told_once_on_that_machine(
    good: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, local_rank, speaks in (("8", "0", True), ("9", "1", False)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", "16")):
            monkeypatch.setenv(name, value)
        batch = "training.global_batch_size=16"
        assert main(["pretrain", *good, batch, "data.blend=[/nonexistent/corpus]"]) == 2
        err = capsys.readouterr().err
        assert (socket.gethostname() in err and "/nonexistent/corpus" in err) == speaks
        assert bool(err) == speaks


def test_the_launchers_world_size_is_the_plans(
    good: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert main(["pretrain", *good, "--dry-run", "parallel.tensor_model_parallel_size=2"]) == 0
    assert "8 processes: tensor 2 x pipeline 1 x data 4" in capsys.readouterr().out
    assert main(["pretrain", *good, "--dry-run", "parallel.world_size=4"]) == 2
    (problem,) = problems(capsys.readouterr().err)
    assert problem == "parallel.world_size=4: but torchrun started 8 processes; use 8, or leave it out"


def test_several_processes_without_a_launcher_name_the_command_to_use(
    good: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*good, "parallel.tensor_model_parallel_size=2", "data.eval_samples=0"]
    assert main(["pretrain", *arguments]) == 2
    (problem,) = problems(capsys.readouterr().err)
    assert problem.startswith("parallel.world_size=2: ")
    assert "qwen-megatron launch model.preset=tiny " in problem
    assert problem.endswith("parallel.tensor_model_parallel_size=2 data.eval_samples=0")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE='-1'"),
    ],
)
def test_a_garbled_launcher_is_refused(environment: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Launch.from_environment(environment)


def test_launch_without_a_launcher() -> None:
    assert Launch.from_environment({}) == Launch(rank=0, local_rank=0, world_size=None)
    assert Launch.from_environment({"RANK": "5", "WORLD_SIZE": "8"}) == Launch(rank=5, local_rank=5, world_size=8)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("data.blend=[]", "data.blend=[]: names no corpus"),
        ("checkpoint.directory=''", "checkpoint.directory=: is needed to train; use a folder for this run"),
        ("checkpoint.directory=~/run", "checkpoint.directory=~/run: ~ is not expanded; use /"),
        (f"checkpoint.directory=/{'x' * 300}/run", "a name in it is longer than 255 bytes"),
        (f"checkpoint.load={'x' * 300}", "no such folder; name a checkpoint's folder"),
        (f"data.blend=[{'x' * 300}]", "cannot be read: File name too long"),
        ("checkpoint.load=Auto", "checkpoint.load=Auto: no such folder; use auto"),
        ("checkpoint.load=runs/none", "checkpoint.load=runs/none: no such folder; name a checkpoint's folder"),
        ("checkpoint.init_from=none", "checkpoint.init_from=none: no such folder; use null"),
        ("data.eval_samples=1000000", "1000000 are held out for evaluation and 1 must be left"),
        ("training.seq_length=100000", "samples of training.seq_length(100000), but 0 are held out"),
        ("model.vocab_size=1000", "end-of-document token 151643 must be below model.vocab_size(1000)"),
    ],
)
def test_what_a_run_needs_besides_its_settings(
    setting: str, problem: str, good: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--dry-run", *good, setting]) == 2
    (found,) = problems(capsys.readouterr().err)
    assert problem in found


def test_a_folder_without_permission_is_refused(
    good: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Root may write anywhere, so the answer of the operating system is set.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    assert main(["pretrain", "--dry-run", *good]) == 2
    (problem,) = problems(capsys.readouterr().err)
    assert f"{tmp_path} cannot be written to" in problem


def test_a_damaged_corpus_is_refused_by_name(
    good: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("bin", "idx", "crc", "json"):
        (tmp_path / f"copy.{suffix}").write_bytes(Path(f"{corpus}.{suffix}").read_bytes())
    (tmp_path / "copy.bin").write_bytes(Path(f"{corpus}.bin").read_bytes()[:-4])
    assert main(["pretrain", "--dry-run", *good, f"data.blend=[{corpus}, {tmp_path}/copy]"]) == 2
    (problem,) = problems(capsys.readouterr().err)
    assert problem.startswith(f"data.blend={tmp_path}/copy: {tmp_path}/copy.bin: ")


def test_every_corpus_that_is_too_small_is_named(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        source = tmp_path / f"{name}.jsonl"
        source.write_text(json.dumps({"text": name}) + "\n")
        tokenize([source], tmp_path / name)
    assert main(["pretrain", "--dry-run", *good, f"data.blend={{{tmp_path}/one: 1, {tmp_path}/two: 2}}"]) == 2
    found = problems(capsys.readouterr().err)
    assert [problem.partition(": ")[0] for problem in found] == [
        f"data.blend={tmp_path}/{name}" for name in ("one", "two")
    ]


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (CheckpointError("folder x is damaged"), 1),
        (DataError("file y is damaged"), 1),
        (PlatformError("no device"), 1),
        (TrainingError("loss is not a number"), 1),
        (ConfigError(["a", "b"]), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_run_raises_becomes_a_message_and_a_status(
    raised: BaseException,
    status: int,
    good: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise raised

    monkeypatch.setattr("qwen_megatron.cli.train.prepare_start", fail)
    assert main(["pretrain", *good]) == status
    err = capsys.readouterr().err
    assert err.startswith("qwen-megatron: ")
    assert "Traceback" not in err
    assert all(text in err for text in str(raised).split("\n"))


@pytest.mark.parametrize(
    ("reason", "launched", "status"),
    [(None, False, 0), ("SIGTERM", False, 0), ("SIGINT", False, 130), ("SIGINT", True, 0)],
)
def test_a_run_that_left_in_order_says_by_its_status_whether_it_was_interrupted(
    reason: str | None, launched: bool, status: int, good: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun would take any other status than 0 for a failure, and start the run again."""
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setitem(sys.modules, "qwen_megatron.jobs.pretrain", SimpleNamespace(pretrain=lambda config: reason))
    assert main(["pretrain", *good]) == status


def test_options_may_stand_anywhere_and_unknown_ones_are_refused(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("optimizer: {lr: 0.25}\n")
    for arguments in (
        ["--dry-run", str(recipe), *good],
        [str(recipe), "--dry-run", *good],
        [str(recipe), *good, "--dry-run"],
        [str(recipe), *good[:2], "--dry-run", *good[2:]],
    ):
        assert main(["pretrain", *arguments]) == 0
        assert "0.25 after" in capsys.readouterr().out
    with pytest.raises(SystemExit) as raised:
        main(["pretrain", *good, "--dryrun"])
    assert raised.value.code == 2
    assert "--dryrun" in capsys.readouterr().err
    later = tmp_path / "later.yaml"
    later.write_text("optimizer: {lr: 0.125}\n")
    assert main(["pretrain", str(recipe), str(later), *good, "--dry-run"]) == 0
    assert "0.125 after" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["show-config", "--help"]])
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_without_a_gpu_no_compiler_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this does to the imports is asked in tests/test_libraries.py."""
    monkeypatch.setattr("qwen_megatron.libraries.GPU_DRIVER", tmp_path / "none")
    environment: dict[str, str] = {}
    without_compiler(environment)
    assert environment == {"TORCHDYNAMO_DISABLE": "1"}
    environment["TORCHDYNAMO_DISABLE"] = "0"
    without_compiler(environment)
    assert environment == {"TORCHDYNAMO_DISABLE": "0"}


def test_with_a_gpu_the_compiler_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr("qwen_megatron.libraries.GPU_DRIVER", driver)
    environment: dict[str, str] = {}
    without_compiler(environment)
    assert environment == {}


def test_what_is_held_out_is_checked_with_all_else(
    good: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("bin", "idx", "json", "crc"):
        (tmp_path / f"copy.{suffix}").write_bytes(Path(f"{corpus}.{suffix}").read_bytes())
    setting = f"data.eval_blend={{gone: {tmp_path}/gone, copy: [{tmp_path}/copy]}}"
    assert main(["pretrain", *good, setting, "--dry-run"]) == 2
    gone, copy = problems(capsys.readouterr().err)
    assert gone.startswith(f"data.eval_blend.gone={tmp_path}/gone: ")
    assert copy.startswith(
        f"data.eval_blend.copy={tmp_path}/copy: holds the same tokens as {corpus}, which is trained on"
    )


def test_a_dry_run_names_what_is_evaluated(good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "other.jsonl"
    source.write_text(
        json.dumps({"text": "some other text, of more than sixteen tokens, or so it is hoped here"}) + "\n"
    )
    tokenize([source], tmp_path / "other")
    assert main(["pretrain", *good, f"data.eval_blend=[{tmp_path}/other]", "--dry-run"]) == 0
    assert "0 samples held out; evaluated on other" in capsys.readouterr().out
    assert main(["pretrain", *good, f"data.eval_blend=[{tmp_path}/other]", "training.seq_length=64", "--dry-run"]) == 2
    assert "tokens must be more than training.seq_length(64); use more text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"tokenizer": "qwen-of-another-kind"}, "but qwen-of-another-kind"),
        ({"tokenizer": None, "end_of_document": 7}, "its documents end with 7"),
        ({"tokenizer": None}, ""),
        ({}, ""),
    ],
)
def test_a_corpus_of_another_tokenizer_is_warned_of(
    good: list[str],
    corpus: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, object],
    found: str,
) -> None:
    for suffix in ("bin", "idx", "crc"):
        os.link(f"{corpus}.{suffix}", tmp_path / f"other.{suffix}")
    sidecar = json.loads(Path(f"{corpus}.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(sidecar | change))
    blend = f"data.blend=[{tmp_path / 'other'}]"
    assert main(["pretrain", *good, blend, "--dry-run"]) == 0
    warning = (
        f"qwen-megatron: warning: {blend.replace('[', '').replace(']', '')}: not made with Qwen's tokenizer ({found})"
    )
    assert capfd.readouterr().err.startswith(warning) if found else not capfd.readouterr().err
    # A model that has no room for Qwen's vocabulary is not taken for one of Qwen's tokens.
    if "end_of_document" in change:
        assert main(["pretrain", *good, blend, "model.vocab_size=300", "--dry-run"]) == 0
        assert capfd.readouterr().err == ""
