"""Every file the tools leave is as widely readable as the user's umask says, whichever library wrote it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

FIXTURE = Path(__file__).parent / "fixtures" / "qwen1-mini"


@pytest.fixture(params=[0o022, 0o077, 0o002], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set while the test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check_modes(folder: Path, umask: int, *expected: str) -> None:
    """All files below `folder` have the mode that `open` would have given them; the expected names are among them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    odd = [f"{path.relative_to(folder)}: {mode:04o}" for path in files if (mode := mode_of(path)) != 0o666 & ~umask]
    assert not odd
    for pattern in expected:
        assert any(path.relative_to(folder).match(pattern) for path in files), pattern


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return path


def test_a_run_its_checkpoints_and_its_report(umask: int, byte_corpus: Path, tmp_path: Path) -> None:
    from qwen_megatron.cli.main import main
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.pretrain import pretrain
    from tests.support.training import SMALL

    settings = (
        "training.train_iters=2",
        "training.eval_interval=2",
        "optimizer.lr_warmup_iters=1",
        "model.num_layers=2",
        "checkpoint.save_interval=1",
        "logging.tensorboard=true",
        "logging.profile_steps='2'",
        f"data.blend=[{byte_corpus}]",
        f"checkpoint.directory={tmp_path}",
    )
    pretrain(resolve(load_config(None, [*SMALL, *settings]), 1))
    assert main(["report", str(tmp_path)]) == 0
    run_files = ("config.yaml", "metrics.jsonl", "completion.json", "latest", "report.html", "tensorboard/*")
    checkpoint = ("iter_0000002/manifest.json", "iter_0000002/.metadata", "iter_0000002/*.distcp")
    check_modes(tmp_path, umask, *run_files, *checkpoint, "profile/*.json.gz")


def test_conversions_and_logits(umask: int, tmp_path: Path) -> None:
    from qwen_megatron.cli.main import main
    from qwen_megatron.convert.from_hf import from_hf
    from qwen_megatron.convert.name_map import Format
    from qwen_megatron.convert.to_hf import to_hf

    from_hf(FIXTURE, tmp_path / "imported")
    to_hf(tmp_path / "imported", tmp_path / "qwen1", hf_format=Format.QWEN1)
    to_hf(tmp_path / "imported", tmp_path / "qwen2", hf_format=Format.QWEN2, max_shard_bytes=100_000)
    np.save(tmp_path / "ids.npy", np.zeros((1, 3), dtype=np.int64))
    logits = ["logits", str(FIXTURE), "--input-ids", str(tmp_path / "ids.npy"), "--output", str(tmp_path / "out.npy")]
    assert main(logits) == 0
    check_modes(tmp_path, umask, "imported/*.distcp", "qwen1/*.safetensors", "qwen2/model-00001-of-*", "out.npy")


def test_corpora(umask: int, tmp_path: Path) -> None:
    from data_tools.cli import main
    from data_tools.corpus.import_corpus import import_corpus

    texts = write_texts(tmp_path / "texts.jsonl", [f"text {number}" for number in range(50)])
    with texts.open("ab") as stream:
        stream.write(b"{broken\n")
    for name in ("one", "two"):
        assert main(["tokenize", str(texts), "--output", str(tmp_path / name)]) == 0
    assert main(["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "both")]) == 0
    for suffix in ("json", "crc"):
        (tmp_path / f"one.{suffix}").unlink()
    import_corpus(tmp_path / "one")
    check_modes(tmp_path, umask, *(f"both.{suffix}" for suffix in ("bin", "idx", "crc", "json")), "*.rejected.jsonl")


def test_a_pipeline_and_its_report(umask: int, tmp_path: Path) -> None:
    from data_tools.engine.executor import InProcessExecutor
    from data_tools.pipeline.pipeline_file import load_pipeline
    from data_tools.pipeline.report import write_report
    from data_tools.pipeline.run import run_pipeline

    write_texts(tmp_path / "texts.jsonl", [f"A text of seven words, number {number % 40}." for number in range(50)])
    write_texts(tmp_path / "exam.jsonl.txt", ["A question that nobody asks in any of the texts that are here today."])
    (tmp_path / "pipeline.yaml").write_text(
        f"output: {tmp_path}/out\nstages:\n"
        f"  - kind: read\n    inputs: [{{path: {tmp_path}/texts.jsonl, source: web}}]\n"
        "  - kind: normalise\n  - kind: exact_dedup\n  - {kind: fuzzy_dedup, rows: 4, bands: 4}\n"
        f"  - kind: decontaminate\n    benchmarks: [{{name: exam, path: {tmp_path}/exam.jsonl.txt, text_key: text}}]\n"
        "  - {kind: tokenize, tokens_in_memory: 2000}\n"
    )
    executor = InProcessExecutor()
    run_pipeline(load_pipeline(tmp_path / "pipeline.yaml"), executor)
    executor.close()
    write_report(tmp_path / "out")
    check_modes(tmp_path, umask, "out/*.json", "out/*.html", "out/corpora/*.bin", "out/stages/*/*.jsonl.zst")


def test_a_quality_model_and_its_scores(umask: int, tmp_path: Path) -> None:
    from data_tools.cli import main
    from tests.support.quality_texts import labelled_texts

    files = {}
    for name, wanted in (("positive", True), ("negative", False)):
        files[name] = write_texts(
            tmp_path / f"{name}.jsonl", [text for text, good in labelled_texts(150) if good == wanted]
        )
    kinds = [argument for name, path in files.items() for argument in (f"--{name}", str(path))]
    assert main(["quality", "train", *kinds, "--output", str(tmp_path / "model"), "--bits", "12"]) == 0
    scored = str(tmp_path / "scored.jsonl.zst")
    assert main(["quality", "score", str(tmp_path / "model"), str(files["positive"]), "--output", scored]) == 0
    check_modes(tmp_path, umask, "model/*.json", "scored.jsonl.zst")


def test_shuffled_buckets_and_edges(umask: int, tmp_path: Path) -> None:
    from data_tools.dedup.buckets import BucketWriter, write_edges
    from data_tools.dedup.minhash import DEFAULT

    signatures = np.arange(3 * DEFAULT.bands * DEFAULT.rows, dtype=np.uint64).reshape(3, -1)
    with BucketWriter(tmp_path, "shard") as writer:
        writer.add(np.arange(3, dtype=np.uint64), signatures)
    write_edges(tmp_path / "edges.npy", np.zeros((0, 2), dtype=np.uint64))
    check_modes(tmp_path, umask, "shard.bands", "edges.npy")


def test_a_library_that_makes_its_files_private(umask: int, tmp_path: Path) -> None:
    from data_tools.io.atomic_file import atomic_path

    with atomic_path(tmp_path / "file") as temporary:
        other = tmp_path / "other"
        other.touch(0o600)
        other.replace(temporary)
        assert mode_of(temporary) == 0o600
    check_modes(tmp_path, umask, "file")


def test_an_atomic_path_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    from data_tools.io.atomic_file import atomic_path

    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text(str(1 / 0))
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file") as temporary:
        temporary.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
