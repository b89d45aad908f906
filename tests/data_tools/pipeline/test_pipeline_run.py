"""Pipelines: counts, resumption, changes, one writer, array jobs."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_tools.cli import main
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.verify import verify
from data_tools.engine.document import cluster_size, read_documents
from data_tools.engine.executor import InProcessExecutor, ProcessExecutor
from data_tools.engine.runner import Runner, Share
from data_tools.engine.task import Task, read_manifest
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.report import write_report
from data_tools.pipeline.run import RunSummary, run_pipeline
from data_tools.stages import fuzzy_dedup
from data_tools.stages import tokenize as tokenize_stage
from data_tools.stages.tokenize_files import TokenizeOptions, tokenize

STAGES = """
  - kind: normalise
  - kind: exact_dedup
    bucket_documents: 100
"""
TOKENIZE = """
  - kind: tokenize
    tokens_in_memory: 3000
"""


WORDS = ("the", "of", "river", "stone", "quickly", "walked", "under", "bright", "morning", "people", "said", "that")


def english(number: int) -> str:
    chooser = random.Random(number)
    return " ".join(chooser.choices(WORDS, k=30)) + f" {number}."


def write_input(path: Path, texts: list[str], bad_after: int = 0) -> None:
    lines = [orjson.dumps({"text": text}) for text in texts]
    if bad_after:
        lines.insert(bad_after, b'{"text": broken')
    path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    def write(stages: str = STAGES + TOKENIZE, output: str = "out", split_bytes: int = 8000) -> Path:
        inputs = "".join(
            f"      - {{path: {path}, source: {path.stem}}}\n" for path in sorted(tmp_path.glob("*.jsonl"))
        )
        path = tmp_path / f"{output}.yaml"
        path.write_text(
            f"output: {tmp_path / output}\nstages:\n  - kind: read\n    split_bytes: {split_bytes}\n"
            f"    inputs:\n{inputs}{stages}"
        )
        return path

    return write


def run(path: Path, workers: int = 1, share: Share | None = None) -> RunSummary:
    executor = InProcessExecutor() if workers == 1 else ProcessExecutor(workers)
    try:
        return run_pipeline(load_pipeline(path), executor, share)
    finally:
        executor.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal: tokens, indices, shards; not times of writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".bin", ".idx", ".crc", ".zst", ".jsonl")
    }


def test_counts_add_up_and_every_bad_line_is_named(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    texts = [english(number % 150) for number in range(200)]
    write_input(tmp_path / "web.jsonl", texts, bad_after=123)
    write_input(tmp_path / "books.jsonl", [english(number) for number in range(140, 180)])
    summary = run(write_pipeline())
    read, normalise, dedup, tokens = summary.stages
    assert (read["records_in"], read["records_out"], read["rejected"]) == (241, 240, {"not_json": 1})
    assert read["parts"] > 4
    assert (normalise["records_in"], normalise["records_out"]) == (240, 240)
    assert (dedup["records_out"], dedup["rejected"]) == (180, {"exact_duplicate": 60})
    assert tokens["records_in"] == tokens["records_out"] == 180
    (bad,) = [orjson.loads(line) for line in summary.quarantine.read_bytes().splitlines()]
    assert (bad["file"], bad["line"], bad["reason"]) == (str(tmp_path / "web.jsonl"), 124, "not_json")
    corpora = tmp_path / "out" / "corpora"
    assert sum(verify(corpora / name).num_documents for name in ("web", "books")) == 180


def test_same_bytes_as_tokenizing_the_shards(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(150)])
    run(write_pipeline())
    shards = sorted((tmp_path / "out/stages/03-exact_dedup").glob("part-??????.jsonl.zst"))
    assert len(shards) > 2
    tokenize(shards, tmp_path / "reference", TokenizeOptions())
    for suffix in ("bin", "idx", "crc"):
        assert (tmp_path / f"out/corpora/web.{suffix}").read_bytes() == (tmp_path / f"reference.{suffix}").read_bytes()


def test_order_of_shards_is_kept_without_a_shuffle(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(100)])
    run(write_pipeline(STAGES + TOKENIZE + "    shuffle: false\n"))
    shards = sorted((tmp_path / "out/stages/03-exact_dedup").glob("part-??????.jsonl.zst"))
    tokenize(shards, tmp_path / "reference", TokenizeOptions(shuffle=False))
    assert (tmp_path / "out/corpora/web.bin").read_bytes() == (tmp_path / "reference.bin").read_bytes()


def test_result_does_not_depend_on_workers_or_repetition(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 60) for number in range(90)])
    first = run(write_pipeline(output="one"))
    again = run(write_pipeline(output="one"))
    assert (again.tasks_done, again.stages) == (0, first.stages)
    run(write_pipeline(output="two"), workers=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == set()


def test_survivors_depend_neither_on_order_nor_on_the_cut(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    texts = [english(number % 50) for number in range(80)]
    # Equal after normalisation only: which one stays must not be a matter of luck.
    texts += [text.upper() for text in texts[:30]] + [text.replace(" ", "  ") for text in texts[:30]]
    survivors = []
    for number, split_bytes in enumerate((100_000_000, 9000, 4000)):
        random.Random(number).shuffle(texts)
        write_input(tmp_path / "web.jsonl", texts)
        run(write_pipeline(STAGES, output=f"out{number}", split_bytes=split_bytes))
        shards = (tmp_path / f"out{number}/stages/03-exact_dedup").glob("part-??????.jsonl.zst")
        survivors.append(sorted(document.text for shard in shards for document in read_documents(shard)))
    assert len(survivors[0]) == 50
    assert survivors[0] == survivors[1] == survivors[2]


def test_of_equal_bytes_the_same_document_stays_whatever_the_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_input(tmp_path / f"{name}.jsonl", [english(number) for number in range(20)])
    survivors = []
    for number, order in enumerate(("abc", "cba", "bca")):
        inputs = ", ".join(f"{{path: {tmp_path}/{name}.jsonl, source: source-{name}}}" for name in order)
        path = tmp_path / "p.yaml"
        path.write_text(
            f"output: {tmp_path}/out{number}\nstages:\n  - {{kind: read, inputs: [{inputs}], split_bytes: 3000}}\n"
            "  - kind: exact_dedup\n"
        )
        run(path)
        shards = (tmp_path / f"out{number}/stages/02-exact_dedup").glob("part-??????.jsonl.zst")
        survivors.append(sorted((one.id, one.source, one.text) for shard in shards for one in read_documents(shard)))
    assert survivors[0] == survivors[1] == survivors[2]
    assert len(survivors[0]) == 20
    assert len({source for _, source, _ in survivors[0]}) > 1


def test_a_change_redoes_what_depends_on_it(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "a.jsonl", [english(number) for number in range(60)])
    write_input(tmp_path / "b.jsonl", [english(number) for number in range(100, 160)])
    first = run(write_pipeline(STAGES))
    with (tmp_path / "a.jsonl").open("ab") as stream:
        stream.write(orjson.dumps({"text": "one more"}) + b"\n")
    second = run(write_pipeline(STAGES))
    assert second.stages[-1]["records_out"] == 121
    # Normalisation of b, read again for nothing, is skipped.
    assert 0 < second.tasks_done < first.tasks_done
    assert second.tasks_skipped >= 4
    # Another option of the last stage leaves the first two alone.
    third = run(write_pipeline(STAGES.replace("100", "90")))
    assert third.tasks_skipped >= second.stages[0]["parts"] + second.stages[1]["parts"]


def test_leftovers_of_another_configuration_go(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(60)])
    run(write_pipeline(STAGES, split_bytes=2000))
    (tmp_path / "out/stages/01-read/.part-000000.jsonl.zst.abc.tmp").write_bytes(b"left by a kill")
    (tmp_path / "out/stages/03-exact_dedup/lists/.hashes.json.abc.tmp").write_bytes(b"left by another")
    run(write_pipeline(STAGES, split_bytes=10**6))
    run(write_pipeline(STAGES, output="fresh", split_bytes=10**6))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not list((tmp_path / "out").rglob(".*"))


def test_damaged_or_missing_files_are_made_again(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(60)])
    run(write_pipeline())
    expected = contents(tmp_path / "out")
    (tmp_path / "out/stages/02-normalise/part-000000.jsonl.zst").write_bytes(b"")
    (tmp_path / "out/corpora/web.bin").unlink()
    (tmp_path / "out/stages/01-read/part-000001.manifest.json").write_bytes(b"{")
    assert run(write_pipeline()).tasks_done > 0
    assert contents(tmp_path / "out") == expected


def command(path: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "data_tools", "run", str(path), *options]


def kill_and_resume(tmp_path: Path, write_pipeline: Callable[..., Path], delays: list[float], workers: int) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 2500) for number in range(3000)])
    run(write_pipeline(output="undisturbed", split_bytes=20_000))
    path = write_pipeline(output="killed", split_bytes=20_000)
    kills = 0
    for delay in delays:
        process = subprocess.Popen(command(path, "--workers", str(workers)), stdout=subprocess.DEVNULL)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert kills > 0
    run(path)
    undisturbed, killed = contents(tmp_path / "undisturbed"), contents(tmp_path / "killed")
    assert undisturbed.keys() == killed.keys()
    assert {name for name in killed if killed[name] != undisturbed[name]} == set()


def test_killed_runs_end_in_the_same_bytes(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    kill_and_resume(tmp_path, write_pipeline, [0.5, 0.9, 1.3], workers=2)


def test_four_runs_on_one_output(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(600)])
    path = write_pipeline(split_bytes=20_000)
    first = subprocess.Popen(command(path), stdout=subprocess.DEVNULL)
    lock = tmp_path / "out/run.lock"
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # It holds the lock for as long as the others need.
    try:
        others = [
            subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        errors = [process.communicate(timeout=60)[1] for process in others]
    finally:
        first.send_signal(signal.SIGCONT)
    assert [process.returncode for process in others] == [1, 1, 1]
    assert all(f"process {first.pid} on " in error for error in errors)
    assert first.wait(120) == 0
    assert verify(tmp_path / "out/corpora/web").num_documents == 600


def test_a_whole_run_and_shards_keep_each_other_out(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(20)])
    path, prefix = write_pipeline(), tmp_path / "out/run"
    prefix.parent.mkdir()
    with corpus_lock(prefix), pytest.raises(DataError, match=rf"run\.lock: process {os.getpid()} on .* is writing"):
        run(path, share=Share(0, 1))
    with corpus_lock(prefix, shared=True):
        with pytest.raises(DataError, match=r"run\.lock: a run with --shard is writing this corpus"):
            run(path)
        run(path, share=Share(0, 1))
        with pytest.raises(DataError, match="run with --shard"):  # One shard's end does not let a whole run in.
            run(path)
    run(path)
    assert verify(tmp_path / "out/corpora/web").num_documents == 20


def test_array_jobs_share_the_work(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 90) for number in range(120)])
    run(write_pipeline(output="alone"))
    path = write_pipeline(output="shared")
    processes = [subprocess.Popen(command(path, "--shard", f"{number}/3", "--workers", "1")) for number in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert {name for name, content in alone.items() if shared.get(name) != content} == set()


def test_a_shard_that_comes_late_takes_the_corpus_as_it_is(
    tmp_path: Path, write_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 90) for number in range(120)])
    path = write_pipeline()
    run(path, share=Share(0, 1))
    folder = tmp_path / "out" / "stages" / "03-exact_dedup"
    parts = [read_manifest(folder, one.name.split(".")[0]) for one in sorted(folder.glob("*.manifest.json"))]
    sealed, hidden = tmp_path / "out" / "corpora" / "web.manifest.json", tmp_path / "hidden.json"
    sealed.rename(hidden)
    gather = tokenize_stage.gather_runs

    def gather_late(*arguments: Any, **options: Any) -> Any:
        # Between this job's look at what is finished and its gathering, another has sealed the corpus.
        hidden.rename(sealed)
        return gather(*arguments, **options)

    monkeypatch.setattr(tokenize_stage, "gather_runs", gather_late)
    runner = Runner(InProcessExecutor(), Share(1, 1000), wait_seconds=0.5)
    (corpus,) = load_pipeline(path).stages[3].stage.run(runner, folder.parent / "04-tokenize", parts)
    assert verify(corpus.values["prefix"]).num_documents == 90


def test_a_bug_while_a_part_is_finished_ends_its_worker() -> None:
    code = (
        "import multiprocessing\n"
        "from data_tools.engine.executor import _send_result\n"
        "_send_result(multiprocessing.Pipe()[0], lambda: 1 / 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_a_shard_that_waits_in_vain_says_for_whom(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    task = Task(operation="read", folder=str(tmp_path / "f"), name="part-000000", options={}, inputs=())
    runner = Runner(InProcessExecutor(), Share(1, 2), wait_seconds=0)
    with pytest.raises(DataError, match="part-000000: another shard has not finished it"):
        runner.run(tmp_path / "f", [task])


def test_max_bad_and_exit_status(
    tmp_path: Path, write_pipeline: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(20)], bad_after=3)
    path = write_pipeline(STAGES)
    assert main(["run", str(path), "--max-bad", "0", "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert "1 of 21 records were rejected, more than --max-bad 0" in printed.err
    assert "rejected.jsonl" in printed.err
    path.write_text(f"max_bad: 0\n{path.read_text()}")
    assert main(["run", str(path), "--workers", "1"]) == 1
    assert "1 of 21 records were rejected, more than max_bad=0; " in capsys.readouterr().err
    assert main(["run", str(path), "--max-bad", "5%", "--workers", "1"]) == 0
    assert "exact_dedup" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") != []


def test_mistakes_in_the_file_come_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "output: [5]\nstages:\n  - kind: read\n    inputs: [{path: a}]\n    split_byte: 5\n"
        "  - {kind: language, min_score: 2}\n  - {kind: dedupe}\n  - {kind: read, inputs: []}\n"
    )
    with pytest.raises(DataError) as error:
        load_pipeline(path)
    message = str(error.value)
    for expected in (
        "output=[5]: must be a string",
        f"stages[0].split_byte=5: unknown key; the closest known one is split_bytes ({path}:5)",
        f"stages[0].inputs[0].source: is missing ({path}:4)",
        f"stages[1].min_score=2: must be at most 1; use 1 ({path}:6)",
        "stages[2].kind=dedupe: must be read, normalise",
        "stages[3].name=read: is used twice",
        "stages[3].kind=read: is out of place",
    ):
        assert expected in message, message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: !!python/object:os.system x\nstages: []\n", r"the tag !!python/object:os\.system is not allowed"),
        ("output: &a x\nstages: *a\n", "stages: must be a list of at least one stage"),
        ("output: x\noutput: y\nstages: []\n", "output is given twice"),
        ("output: [\n", r"p\.yaml: line \d+: not valid YAML"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_pipeline(path)


def test_near_duplicates_do_not_depend_on_order_or_cut(
    tmp_path: Path, write_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(number: int) -> str:
        return " ".join(f"w{random.Random(number * 1000 + place).randrange(10**6)}" for place in range(80))

    texts = [words(number) for number in range(40)]
    # Clusters of three: the one that stays must not be a matter of order.
    texts += [f"{words(number)} more" for number in range(10)] + [f"other {words(number)}" for number in range(10)]
    # Exact copies count too: five clusters of three documents, five of four, five of two.
    texts += [words(number).upper() for number in range(5, 15)]
    stages = STAGES + "  - {kind: fuzzy_dedup, bucket_documents: 40}\n"
    survivors, sizes, shown = [], [], []
    for number, split_bytes in enumerate((10**8, 9000, 4000)):
        random.Random(number).shuffle(texts)
        write_input(tmp_path / "web.jsonl", texts)
        # As if there were too many parts, in the last run.
        monkeypatch.setattr(fuzzy_dedup, "_MOST_SIGNED", 3 if number == 2 else 512)
        # One output: buckets of parts that are no more must not be taken for present ones.
        summary = run(write_pipeline(stages, split_bytes=split_bytes))
        assert summary.stages[-1]["rejected"] == {"near_duplicate": 20}
        shards = (tmp_path / "out/stages/04-fuzzy_dedup").glob("part-??????.jsonl.zst")
        documents = [document for shard in shards for document in read_documents(shard)]
        survivors.append(sorted(document.text for document in documents))
        sizes.append(sorted((document.text, cluster_size(document)) for document in documents))
        shown.append(
            [
                (cluster["size"], [(one["is_kept"], one["text"].lower()) for one in cluster["documents"]])
                for cluster in summary.stages[-1]["clusters"]
            ]
        )
    signed = len(list((tmp_path / "out/stages/04-fuzzy_dedup/buckets").glob("*.manifest.json")))
    assert 3 <= signed < len(list((tmp_path / "out/stages/04-fuzzy_dedup").glob("*.manifest.json")))
    assert survivors[0] == survivors[1] == survivors[2]
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(survivors[0]) == 40
    assert sorted(size for _, size in sizes[0]) == [1] * 25 + [2] * 5 + [3] * 5 + [4] * 5
    # The largest clusters with what is kept and some of the others, the same ones however the input is cut.
    assert len(shown[0]) == 5
    for size, examples in shown[0]:
        assert size == 4
        assert [is_kept for is_kept, _ in examples] == [True, False, False]
        assert len({text.lower().removeprefix("other ")[:200] for _, text in examples}) == 1
    assert sorted(sorted(examples) for _, examples in shown[0]) == sorted(sorted(examples) for _, examples in shown[2])
    page = write_report(tmp_path / "out").read_text("utf-8")
    assert "Near duplicates found by fuzzy_dedup" in page
    assert page.count("4 documents, one is kept") == 5


def test_fuzzy_needs_exact_first(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", ["a"])
    with pytest.raises(DataError, match="kind=fuzzy_dedup: needs a stage exact_dedup before it"):
        load_pipeline(write_pipeline("  - kind: fuzzy_dedup\n"))


def false_candidates() -> tuple[list[str], int]:
    """Texts of which two in a row have most words in common, so that coarse bands take all of them for one cluster.

    Returns:
        the texts, and how many of them are true copies (a word or two of eighty changed).
    """

    def words(number: int) -> list[str]:
        return [f"w{random.Random(number * 1000 + place).randrange(10**6)}" for place in range(80)]

    chain = [words(0)]
    for number in range(1, 12):
        chain.append(words(number)[:30] + chain[-1][30:])
    texts = [" ".join(one) for one in chain]
    copies = [f"{text} more" for text in texts[::3]]
    return texts + copies, len(copies)


def test_the_exact_check_keeps_false_candidates_apart(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    texts, num_copies = false_candidates()
    stage = "  - {kind: fuzzy_dedup, bands: 12, rows: 1, num_words: 2, min_jaccard: %s}\n"
    write_input(tmp_path / "web.jsonl", texts)
    loose = run(write_pipeline(STAGES + stage % 0, output="loose"))
    assert loose.stages[-1]["rejected"]["near_duplicate"] > 2 * num_copies
    survivors = []
    for number, (split_bytes, workers) in enumerate(((10**8, 1), (3000, 2))):
        random.Random(number).shuffle(texts)
        write_input(tmp_path / "web.jsonl", texts)
        summary = run(write_pipeline(STAGES + stage % 0.9, split_bytes=split_bytes), workers)
        assert summary.stages[-1]["rejected"] == {"near_duplicate": num_copies}
        shards = (tmp_path / "out/stages/04-fuzzy_dedup").glob("part-??????.jsonl.zst")
        survivors.append(sorted(document.text for shard in shards for document in read_documents(shard)))
    assert survivors[0] == survivors[1]
    # Every copy is gone or stands for its original.
    assert len({text.removesuffix(" more") for text in survivors[0]}) == len(survivors[0]) == len(texts) - num_copies


def test_a_stage_that_stands_without_what_it_needs(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", ["a"])
    with pytest.raises(DataError, match="kind=mixture: needs a stage tokenize before it"):
        load_pipeline(write_pipeline("  - kind: mixture\n"))
