"""One training after another: to longer contexts, to dialogues, to a second stage; and going on from a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.config.recipes import recipes
from qwen_megatron.jobs.kinds.table import JOBS
from tests.support.corpora import write_zero_corpus
from tests.support.dialogues import VOCABULARY, documentation, random_dialogues, write_dialogues
from tests.support.ranks import RankPool
from tests.support.training import rows, run_job

SMALL = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    f"model.vocab_size={VOCABULARY}",
    "training.precision=fp32",
    "training.global_batch_size=4",
    "training.micro_batch_size=4",
    "optimizer.lr=3e-3",
    "data.num_workers=0",
    "logging.tensorboard=false",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora of every kind: `text`, `dialogues`, `pairs`."""
    folder = tmp_path_factory.mktemp("stages")
    write_zero_corpus(folder / "text", 64 * 1024)
    write_dialogues(folder / "dialogues", documentation(32))
    write_dialogues(folder / "pairs", random_dialogues(64, 60, VOCABULARY), kind="pairs")
    return folder


def steps(directory: Path) -> dict[int, dict[str, object]]:
    return {row["step"]: row for row in rows(directory) if "loss" in row}


def evaluations(directory: Path) -> list[float]:
    return [row["eval_loss"] for row in rows(directory) if "eval_loss" in row]


@pytest.mark.parametrize(("kind", "corpus"), [("sft", "dialogues"), ("reward", "pairs")])
def test_gone_on_from_a_checkpoint_bit_for_bit(
    kind: str, corpus: str, ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    settings = [*SMALL, f"data.blend=[{folder / corpus}]", "training.train_iters=6", "checkpoint.save_interval=3"]
    settings += ["training.seq_length=64", "data.eval_samples=6", "model.hidden_dropout=0.1"]
    ranks.run(1, run_job, kind=kind, overrides=[*settings, f"checkpoint.directory={tmp_path / 'whole'}"])
    shutil.copytree(tmp_path / "whole" / "iter_0000003", tmp_path / "again" / "iter_0000003")
    ranks.run(1, run_job, kind=kind, overrides=[*settings, f"checkpoint.directory={tmp_path / 'again'}"])
    whole, again = steps(tmp_path / "whole"), steps(tmp_path / "again")
    assert sorted(again) == [4, 5, 6]
    for step, row in again.items():
        for name in ("loss_hex", "grad_norm", "learning_rate", "consumed_samples"):
            assert row[name] == whole[step][name]
    assert evaluations(tmp_path / "again")[-1] == evaluations(tmp_path / "whole")[-1]


def test_a_second_stage_has_the_weights_of_the_first_and_a_schedule_of_its_own(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    settings = [*SMALL, f"data.blend=[{folder / 'dialogues'}]", "training.seq_length=128", "data.eval_samples=6"]
    settings += ["optimizer.lr_decay_style=constant", "optimizer.lr_warmup_iters=3", "training.train_iters=5"]
    first, second = tmp_path / "first", tmp_path / "second"
    ranks.run(1, run_job, kind="sft", overrides=[*settings, f"checkpoint.directory={first}"])
    more = [f"checkpoint.init_from={first / 'iter_0000005'}", "optimizer.lr=6e-4", f"checkpoint.directory={second}"]
    ranks.run(1, run_job, kind="sft", overrides=[*settings, *more])
    assert evaluations(second)[0] == evaluations(first)[-1] < evaluations(first)[0]
    assert [row["learning_rate"] for row in steps(second).values()] == pytest.approx([2e-4, 4e-4, 6e-4, 6e-4, 6e-4])
    assert steps(second)[1]["consumed_samples"] == 4


def test_context_grows_from_pretraining_to_code_and_shrinks_to_mathematics(
    ranks: RankPool, folder: Path, tmp_path: Path
) -> None:
    """2048 tokens, then 8192 with those weights, then dialogues at 1024."""
    one = [*SMALL, "training.train_iters=1", "training.global_batch_size=1", "training.micro_batch_size=1"]
    text = [*one, f"data.blend=[{folder / 'text'}]"]
    stages = {
        "base": ("pretrain", [*text, "model.seq_length=2048", "training.seq_length=2048"]),
        "code": ("pretrain", [*text, "model.seq_length=8192", "training.seq_length=8192"]),
        "math": ("sft", [*one, f"data.blend=[{folder / 'dialogues'}]", "model.seq_length=8192"]),
    }
    before = None
    for name, (kind, settings) in stages.items():
        if kind == "sft":
            settings = [*settings, "training.seq_length=1024"]
        init = [] if before is None else [f"checkpoint.init_from={tmp_path / before / 'iter_0000001'}"]
        ranks.run(1, run_job, kind=kind, overrides=[*settings, *init, f"checkpoint.directory={tmp_path / name}"])
        before = name
    found = {name: steps(tmp_path / name)[1] for name in stages}
    assert [row["consumed_tokens"] for row in found.values()] == [2048, 8192, 1024]
    # The text is one token again and again: a step has taught it, so weights were taken over.
    assert found["code"]["loss"] < found["base"]["loss"] - 0.01


# PPO's needs checkpoints (tests/jobs/test_ppo.py), and those of the demo start from each other's.
@pytest.mark.parametrize("name", [name for name in recipes() if name != "ppo-7b" and not name.startswith("demo-")])
def test_every_recipe_dry_runs(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = next((job for job in JOBS if job != "pretrain" and job in name), "pretrain")
    kind = "reward" if name.startswith("preference") else kind
    corpus = folder / {"pretrain": "text", "sft": "dialogues", "reward": "pairs"}[kind]
    settings = [f"recipe:{name}", f"data.blend=[{corpus}]", "data.eval_samples=4", "parallel.platform=cpu"]
    assert main([kind, *settings, f"checkpoint.directory={tmp_path}", "--dry-run"]) == 0, capsys.readouterr().err
    assert "start   a new run" in capsys.readouterr().out
    if kind == "sft" and "code" not in name:
        assert "0.1" in Path(recipes()[name]).read_text()


@pytest.mark.parametrize(
    ("kind", "corpus", "message"),
    [
        ("pretrain", "dialogues", "is a corpus of dialogues, not of text"),
        ("pretrain", "pairs", "is a corpus of pairs, not of text"),
        ("sft", "text", "is a corpus of text, not of dialogues; make one with: qwen-data chat"),
        ("sft", "pairs", "is a corpus of pairs, not of dialogues"),
        ("reward", "dialogues", "is a corpus of dialogues, not of pairs"),
        ("sft", None, "data.blend=[]: names no corpus of dialogues; make one with qwen-data chat"),
    ],
)
def test_a_job_takes_corpora_of_its_kind(
    kind: str, corpus: str | None, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "training.train_iters=1", f"checkpoint.directory={tmp_path / 'run'}"]
    settings += [f"data.blend=[{folder / corpus}]"] if corpus else []
    assert main([kind, *settings, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_packed_rows_need_kernels_that_tell_dialogues_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, f"data.blend=[{folder / 'dialogues'}]", f"checkpoint.directory={tmp_path}"]
    divided = ["parallel.world_size=2", "parallel.context_parallel_size=2"]
    assert main(["sft", *settings, *divided, "parallel.platform=cuda", "--dry-run"]) == 2
    assert "model.implementation=auto: must be torch to fine-tune (dialogues share rows)" in capsys.readouterr().err
    recorded = ["parallel.platform=cuda", "parallel.cuda_graph_impl=local"]
    assert main(["sft", *settings, *recorded, "--dry-run"]) == 2
    assert "cuda_graph_impl=local: must be none to fine-tune (dialogues share rows)" in capsys.readouterr().err


def test_a_reward_model_is_no_language_model(
    ranks: RankPool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is neither fine-tuned nor gone on with nor exported, and each refusal says what it is."""
    settings = [*SMALL, "training.train_iters=1", "training.seq_length=64", f"checkpoint.directory={tmp_path / 'run'}"]
    ranks.run(1, run_job, kind="reward", overrides=[*settings, f"data.blend=[{folder / 'pairs'}]"])
    saved = tmp_path / "run" / "iter_0000001"
    sft = [*settings, f"data.blend=[{folder / 'dialogues'}]"]
    refused = [
        (["sft", *sft, f"checkpoint.directory={tmp_path / 'sft'}", f"checkpoint.init_from={saved}"], "is a reward or"),
        (["sft", *sft], "model 'model' has a scalar head, this job's a language_model head"),
        (["convert", "to-hf", str(saved), str(tmp_path / "hf")], "has a scalar head, which no Hugging Face format has"),
    ]
    for arguments, message in refused:
        assert main([*arguments, *(["--dry-run"] if arguments[0] == "sft" else [])]) in (1, 2)
        assert message in capsys.readouterr().err
    # It is asked in one process, of a corpus; what is no reward model is refused.
    assert main(["rewards", str(saved), str(folder / "pairs"), "--documents", "8"]) == 0
    *told, accuracy = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == [str(number) for number in range(8)]
    rewards = [float(line.split()[1]) for line in told]
    right = sum(chosen > rejected for chosen, rejected in zip(rewards[0::2], rewards[1::2], strict=True))
    assert accuracy.startswith(f"accuracy {right / 4:.1%} of 4 pairs, ")
    # Its own job starts from it, with its head.
    again = [*settings, f"data.blend=[{folder / 'pairs'}]", f"checkpoint.directory={tmp_path / 'again'}"]
    assert main(["reward", *again, f"checkpoint.init_from={saved}", "--dry-run"]) == 0
