"""The quality score in a pipeline, the choice by it, and up-sampling by it and by cluster size; exact counts."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard

from data_tools.corpus.verify import verify
from data_tools.engine.document import Document, Drop, read_documents
from data_tools.engine.executor import InProcessExecutor, ProcessExecutor
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import RunSummary, run_pipeline
from data_tools.quality import FeatureConfig, QualityModel, TrainingConfig, train
from data_tools.stages.quality_transform import lomax
from data_tools.stages.transforms import TRANSFORMS
from tests.support.quality_texts import labelled_texts, quality_text

TEXTS = [quality_text(seed, good=seed % 2 == 1, share=0.15) for seed in range(5000, 5200)]


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return train(labelled_texts(200), TrainingConfig(features=FeatureConfig(bits=12)))


@pytest.fixture
def write_pipeline(tmp_path: Path, model: QualityModel) -> Callable[..., Path]:
    model.save(tmp_path / "model")
    (tmp_path / "web.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in TEXTS))

    def write(stages: str, output: str = "out") -> Path:
        path = tmp_path / f"{output}.yaml"
        path.write_text(
            f"output: {tmp_path / output}\nstages:\n  - kind: read\n    split_bytes: 9000\n    inputs:\n"
            f"      - {{path: {tmp_path / 'web.jsonl'}, source: web}}\n"
            + stages.replace("MODEL", str(tmp_path / "model"))
        )
        return path

    return write


def run(path: Path, workers: int = 1) -> RunSummary:
    executor = InProcessExecutor() if workers == 1 else ProcessExecutor(workers)
    try:
        return run_pipeline(load_pipeline(path), executor)
    finally:
        executor.close()


def documents(folder: Path) -> list[Document]:
    return [document for path in sorted(folder.glob("part-??????.jsonl.zst")) for document in read_documents(path)]


def dropped(folder: Path) -> list[dict]:
    streams = [
        zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
        for path in sorted(folder.glob("*.dropped.jsonl.zst"))
    ]
    return [orjson.loads(line) for stream in streams for line in stream.splitlines()]


def test_scores_and_the_least_score(tmp_path: Path, write_pipeline: Callable[..., Path], model: QualityModel) -> None:
    summary = run(write_pipeline("  - {kind: quality, model: MODEL, min_score: 0.6}\n"))
    expected = dict(zip(TEXTS, model.scores(TEXTS).tolist(), strict=True))
    kept, lost = documents(tmp_path / "out/stages/02-quality"), dropped(tmp_path / "out/stages/02-quality")
    assert {document.text: document.metadata["quality"] for document in kept} == {
        text: score for text, score in expected.items() if score >= 0.6
    }
    assert 60 < len(kept) < 140
    assert summary.stages[1]["rejected"] == {"low_quality": 200 - len(kept)}
    for entry in lost:
        score = expected[entry["document"]["text"]]
        assert entry["document"]["metadata"]["quality"] == score < 0.6
        assert entry["detail"] == f"score {score:.4f}, below 0.6"


def test_another_model_does_its_dependants_again(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    stages = "  - {kind: quality, model: MODEL, min_score: 0.5}\n  - kind: exact_dedup\n"
    first = run(write_pipeline(stages))
    assert run(write_pipeline(stages)).tasks_done == 0
    other = train(labelled_texts(100), TrainingConfig(features=FeatureConfig(bits=12), l2=10))
    other.save(tmp_path / "model")
    second = run(write_pipeline(stages))
    # Scores, hashes and shards without duplicates are made anew; only reading is not.
    assert second.tasks_done >= 3 * first.stages[0]["parts"]
    assert second.tasks_skipped >= first.stages[0]["parts"]
    scores = {document.metadata["quality"] for document in documents(tmp_path / "out/stages/03-exact_dedup")}
    assert scores <= set(other.scores(TEXTS).tolist())


def test_draws_follow_the_lomax_distribution_and_the_text_alone(
    tmp_path: Path, write_pipeline: Callable[..., Path], model: QualityModel
) -> None:
    draws = [lomax(b"7:", f"text {number}", 9.0) for number in range(4000)]
    for x in (0.01, 0.1, 0.3, 1.0):
        expected = (1 + x) ** -9.0
        found = sum(draw > x for draw in draws) / 4000
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert [lomax(b"7:", f"text {number}", 9.0) for number in range(3)] == draws[:3]
    assert lomax(b"8:", "text 0", 9.0) != draws[0]
    stages = "  - {kind: quality, model: MODEL, pareto_alpha: 3, seed: 5}\n"
    summary = run(write_pipeline(stages))
    scores = dict(zip(TEXTS, model.scores(TEXTS).tolist(), strict=True))
    expected_texts = [text for text in TEXTS if lomax(b"5:", text, 3.0) > 1 - scores[text]]
    assert [document.text for document in documents(tmp_path / "out/stages/02-quality")] == expected_texts
    assert summary.stages[1]["rejected"] == {"quality_draw": 200 - len(expected_texts)}
    kept_low = sum(scores[text] < 0.5 for text in expected_texts)
    assert 0 < kept_low < sum(score < 0.5 for score in scores.values())
    assert run(write_pipeline(stages, "two"), workers=2).stages == summary.stages
    for path in (tmp_path / "out/stages/02-quality").glob("*.zst"):
        assert path.read_bytes() == (tmp_path / "two/stages/02-quality" / path.name).read_bytes()


def test_languages_that_the_model_is_not_made_for(model: QualityModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    options = {"model": str(tmp_path), "checksum": model.checksum, "min_score": 1.0, "pareto_alpha": None, "seed": 1}
    transform = TRANSFORMS["quality"]({**options, "skip_languages": ["code"]})
    code, text = Document("a", "web", TEXTS[0], "code"), Document("b", "web", TEXTS[0], "en")
    kept, lost = transform([code, text])
    assert kept is code
    assert code.metadata == {}
    assert isinstance(lost, Drop)
    with pytest.raises(DataError, match="the model was replaced while the pipeline ran"):
        TRANSFORMS["quality"]({**options, "checksum": "0", "skip_languages": []})


SAMPLE = """
  - {kind: sample, quality: [[0.8, 3], [0.5, 1.5], [0, 0.5]], cluster_size: [[2, 2]], max_epochs: 5}
"""


def test_copies_are_exact_and_capped(tmp_path: Path, write_pipeline: Callable[..., Path], model: QualityModel) -> None:
    with (tmp_path / "web.jsonl").open("ab") as stream:
        for text in TEXTS[:30]:
            stream.write(orjson.dumps({"text": text.upper()}) + b"\n")
    stages = "  - kind: exact_dedup\n  - {kind: quality, model: MODEL}\n" + SAMPLE + "  - kind: tokenize\n"
    summary = run(write_pipeline(stages))
    before, after = documents(tmp_path / "out/stages/03-quality"), documents(tmp_path / "out/stages/04-sample")
    assert len(before) == 200
    times = Counter(document.id.partition("#")[0] for document in after)
    assert len({document.id for document in after}) == len(after)
    number_of = {"low": 0, "middle": 0, "high": 0}
    for document in before:
        size, score = document.metadata.get("cluster_size", 1), document.metadata["quality"]
        expected = (3 if score >= 0.8 else 1.5 if score >= 0.5 else 0.5) * (2 if size == 2 else 1)
        expected = min(expected, 5)
        assert times[document.id] in {math.floor(expected), math.ceil(expected)}, (score, size)
        number_of["high" if score >= 0.8 else "middle" if score >= 0.5 else "low"] += 1
    assert min(number_of.values()) > 10
    assert sum(size == 5 for size in times.values()) > 3  # 3 x 2, capped
    sample = summary.stages[3]
    assert sample["records_in"] == 200
    assert sample["records_in"] + sample["copied"] == sample["records_out"] + sample["rejected"]["not_sampled"]
    assert sample["records_out"] == len(after) == times.total()
    assert sample["copied"] == sum(count - 1 for count in times.values())
    copies = [document for document in after if document.id.startswith(before[0].id.partition("#")[0])]
    assert len({document.text for document in copies}) <= 1
    assert verify(tmp_path / "out/corpora/web").num_documents == len(after)
    assert summary.stages[4]["records_in"] == len(after)
    again = run(write_pipeline(stages, "two"), workers=2)
    assert again.stages == summary.stages
    assert (tmp_path / "two/corpora/web.bin").read_bytes() == (tmp_path / "out/corpora/web.bin").read_bytes()


def test_factors_between_whole_numbers_are_met_on_average() -> None:
    options = {"fractions": {"web": 0.9}, "quality": [], "cluster_size": [[3, 2.5]], "max_epochs": 4, "seed": 1}
    transform = TRANSFORMS["sample"](options)
    batch = [Document(str(number), "web", "", metadata={"cluster_size": 3}) for number in range(4000)]
    times = [result.times for result in transform(batch)]
    assert set(times) == {2, 3}
    assert sum(times) / 4000 == pytest.approx(2.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))


@pytest.mark.parametrize("metadata", [{"quality": "0.5"}, {"quality": 2}, {"cluster_size": 0}, {"cluster_size": "3"}])
def test_values_of_the_users_that_are_none(metadata: dict[str, object]) -> None:
    transform = TRANSFORMS["sample"](
        {"fractions": {}, "quality": [[0.5, 2]], "cluster_size": [[2, 2]], "max_epochs": 4, "seed": 1}
    )
    with pytest.raises(DataError, match=r"a@7: (quality|cluster_size)=.* must be a"):
        transform([Document("a@7", "web", "", metadata=metadata)])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("  - {kind: quality, model: nowhere}\n", "model=nowhere: must be the folder of a model"),
        ("  - {kind: quality, model: MODEL, min_score: 2}\n", "min_score=2: must be at most 1; use 1"),
        ("  - {kind: quality, model: MODEL, pareto_alpha: 0}\n", "pareto_alpha=0: must be above 0"),
        ("  - {kind: sample, quality: [[0.5, 2]]}\n", "has bands of quality, but no stage quality before it"),
        (
            "  - {kind: sample, cluster_size: [[2, 2]]}\n",
            "has bands of cluster_size, but no stage exact_dedup",
        ),
        ("  - {kind: sample, quality: [[0.5, 2], [0.5, 3]]}\n", "must be bands"),
        ("  - {kind: sample, quality: [[5, 2]]}\n", r"must be bands \[least score, factor\], scores 0 to 1"),
        ("  - {kind: sample, quality: [[0.5]]}\n", r"quality\[0\]=\[0.5\]: must be a list of 2 values"),
        ("  - {kind: sample, max_epochs: 0}\n", "max_epochs=0: must be at least 1"),
        (
            "  - {kind: quality, model: MODEL}\n  - {kind: sample, quality: [[0.5, 2]]}\n  - kind: exact_dedup\n",
            "would remove the copies that the stage sample before it makes",
        ),
    ],
)
def test_mistakes_in_the_file(write_pipeline: Callable[..., Path], stages: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pipeline(write_pipeline(stages))
