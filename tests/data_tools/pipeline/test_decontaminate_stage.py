"""Decontamination of a corpus: items are reported with context, documents dropped or spans cut, clean text stays."""

import random
from pathlib import Path

import orjson
import pytest

from data_tools.cli import main
from data_tools.engine.document import read_documents
from data_tools.pipeline.report import write_report

QUESTION = "Which of the three old travellers arrived at the inn before the storm closed the only road to the coast?"
WORDS = QUESTION.split()
SHORT = "What is the airspeed of an unladen swallow?"


def filler(seed: int, count: int) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("aeioulmnrst", k=6)) for _ in range(count))


def write_corpus(folder: Path) -> list[str]:
    texts = [filler(number, 60) for number in range(20)]
    texts[3] += f" {QUESTION} {filler(103, 5)}"
    texts[7] = f"{SHORT.upper()} {texts[7]}"
    texts[9] += f" {' '.join([*WORDS[:4], 'edited', *WORDS[5:]])}"  # 15 words behind the edit are left.
    texts[11] = f"{filler(11, 10_000)} {QUESTION}"  # Longer than a part.
    texts[13] += f" {SHORT.replace('unladen ', '')}"  # A short item counts whole only.
    (folder / "web.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": text}) for text in texts))
    (folder / "exam.jsonl").write_bytes(orjson.dumps({"q": QUESTION}) + b"\n" + orjson.dumps({"q": SHORT}) + b"\n")
    (folder / "other.jsonl").write_bytes(orjson.dumps({"q": filler(999, 20)}))
    return texts


@pytest.mark.parametrize("remove", ["document", "span"])
def test_what_is_found_is_reported_and_removed(tmp_path: Path, remove: str) -> None:
    texts = write_corpus(tmp_path)
    benchmarks = ", ".join(
        f"{{name: {name}, path: {tmp_path}/{name}.jsonl, text_key: q}}" for name in ("exam", "other")
    )
    output = tmp_path / "out"
    arguments = [f"benchmarks=[{benchmarks}]", f"remove={remove}", "read.split_bytes=8000"]
    command = ["stage", "decontaminate", str(tmp_path / "web.jsonl"), *arguments]
    assert main([*command, "--output", str(output), "--workers", "1"]) == 0
    folder = output / "stages/02-decontaminate"
    shards = sorted(folder.glob("part-??????.jsonl.zst"))
    assert len(shards) > 5
    kept = [document.text for shard in shards for document in read_documents(shard)]
    matches = [orjson.loads(line) for path in sorted(folder.glob("*.matches.jsonl")) for line in path.open("rb")]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(orjson.dumps({"text": text})) + 1)
    items = [(match["item"], offsets.index(int(match["document"].rpartition("@")[2]))) for match in matches]
    exam = f"{tmp_path}/exam.jsonl"
    assert items == [(f"{exam}:1", 3), (f"{exam}:2", 7), (f"{exam}:1", 9), (f"{exam}:1", 11)]
    for match, (_, number) in zip(matches, items, strict=True):
        assert texts[number][match["start"] : match["end"]] == match["matched"]
        assert texts[number][: match["start"]].endswith(match["before"])
        assert texts[number][match["end"] :].startswith(match["after"])
        assert match["benchmark"] == "exam"
    found = {number for _, number in items}
    if remove == "document":
        assert kept == [text for number, text in enumerate(texts) if number not in found]
    else:
        assert [text for number, text in enumerate(kept) if number not in found] == [
            text for number, text in enumerate(texts) if number not in found
        ]
        assert kept[3] == f"{filler(3, 60)}\n? {filler(103, 5)}"
        assert all(SHORT.upper()[:-1] not in text and QUESTION[:-1] not in text for text in kept)
    (summary,) = [
        stage
        for stage in orjson.loads((output / "pipeline.json").read_bytes())["stages"]
        if stage["kind"] == "decontaminate"
    ]
    assert summary["matches"] == {"exam": [4, 4]}
    assert summary["rejected"] == ({"contaminated": 4} if remove == "document" else {})
    assert "Benchmarks found" in write_report(output).read_text("utf-8")
