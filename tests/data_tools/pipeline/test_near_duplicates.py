"""Near duplicates in a pipeline: neither order nor cut nor false candidates matter."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.engine.document import cluster_size, read_documents
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.report import write_report
from data_tools.stages import fuzzy_dedup
from tests.data_tools.pipeline.small_pipelines import STAGES, pipelines_in, run, write_input


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    return pipelines_in(tmp_path)


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
