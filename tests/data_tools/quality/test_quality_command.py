"""qwen-data quality: files to a model, files to scores; every record accounted for, exit statuses."""

import gzip
from pathlib import Path

import orjson
import pytest
import zstandard

from data_tools.cli import main
from data_tools.quality import QualityModel
from data_tools.quality.labelled import LabelledInput, read_labelled
from data_tools.readers.inputs import total_bytes
from data_tools.readers.jsonl import Rejection
from tests.support.quality_texts import labelled_texts


def write_records(path: Path, records: list[dict[str, object]], *raw: bytes) -> Path:
    lines = [*map(orjson.dumps, records), *raw]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def kinds(tmp_path: Path) -> tuple[Path, Path]:
    """Files of positive and of negative texts, one bad line each."""
    paths = []
    for good, name in ((True, "good.jsonl"), (False, "bad.jsonl.gz")):
        records: list[dict[str, object]] = [
            {"text": text, "id": number} for number, (text, label) in enumerate(labelled_texts(150)) if label == good
        ]
        paths.append(write_records(tmp_path / name, records, b'{"text": broken'))
    return paths[0], paths[1]


def train(kinds: tuple[Path, Path], model: Path, *more: str) -> int:
    good, bad = kinds
    return main(
        ["quality", "train", "--positive", str(good), "--negative", str(bad), "--output", str(model), "--bits", "12"]
        + [*more]
    )


def test_train_and_score(kinds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, scored = tmp_path / "model", tmp_path / "scored.jsonl.zst"
    assert train(kinds, model) == 0
    shown = capsys.readouterr()
    assert "AUC 1.0000" in shown.out
    assert f"rejected 2 of 302 records (not_json 2): {model}/rejected.jsonl" in shown.err
    rejected = [orjson.loads(line) for line in (model / "rejected.jsonl").read_bytes().splitlines()]
    assert [(Path(one["file"]), one["line"], one["reason"]) for one in rejected] == [
        (kinds[0], 151, "not_json"),
        (kinds[1], 151, "not_json"),
    ]
    assert main(["quality", "score", str(model), *map(str, kinds), "--output", str(scored), "--threads", "2"]) == 0
    assert f"{scored}: 300 records" in capsys.readouterr().out
    content = zstandard.ZstdDecompressor().stream_reader(scored.read_bytes()).read()
    records = [orjson.loads(line) for line in content.splitlines()]
    expected = [
        (number, text)
        for good in (True, False)
        for number, (text, label) in enumerate(labelled_texts(150))
        if label == good
    ]
    assert [(record["id"], record["text"]) for record in records] == expected
    scores = QualityModel.load(model).scores([text for _, text in expected])
    assert [record["quality"] for record in records] == scores.tolist()
    assert scores[:150].min() > scores[150:].max()
    assert len((tmp_path / "scored.jsonl.zst.rejected.jsonl").read_bytes().splitlines()) == 2


def test_the_model_depends_neither_on_order_nor_on_files_nor_on_threads(
    kinds: tuple[Path, Path], tmp_path: Path
) -> None:
    assert train(kinds, tmp_path / "one", "--threads", "1") == 0
    records = [{"body": text, "good": label} for text, label in reversed(labelled_texts(150))]
    first = write_records(tmp_path / "first.jsonl", records[::2])
    unlabelled = (b'{"body": "a", "good": "perhaps"}', b'{"body": "b"}')
    second = write_records(tmp_path / "second.jsonl", records[1::2], *unlabelled)
    arguments = ["quality", "train", "--labelled", str(second), str(first), "--label-key", "good", "--text-key", "body"]
    arguments += ["--output", str(tmp_path / "two"), "--bits", "12", "--threads", "3"]
    assert main(arguments) == 0
    one, two = (tmp_path / name / "weights.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert QualityModel.load(tmp_path / "one").checksum == QualityModel.load(tmp_path / "two").checksum
    rejected = [orjson.loads(line) for line in (tmp_path / "two/rejected.jsonl").read_bytes().splitlines()]
    assert [(one["line"], one["reason"]) for one in rejected] == [(151, "bad_label"), (152, "bad_label")]
    assert "'good' is 'perhaps'; it must be 1 or 0" in rejected[0]["detail"]
    assert "'good' is not there" in rejected[1]["detail"]


def test_exit_statuses(kinds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"

    def fails(*arguments: object, status: int = 1) -> str:
        assert main(["quality", *map(str, arguments)]) == status
        return capsys.readouterr().err

    assert train(kinds, model, "--max-bad", "1") == 1
    assert "2 of 302 records were rejected, more than --max-bad 1; the output holds" in capsys.readouterr().err
    assert train(kinds, model) == 2
    assert "model.json: is there already; choose another output or give --overwrite" in capsys.readouterr().err
    assert train(kinds, model, "--overwrite", "--max-bad", "1%") == 0
    output = tmp_path / "out.jsonl"
    output.write_text("kept")
    assert "out.jsonl: is there already" in fails("score", model, kinds[0], "--output", output, status=2)
    assert output.read_text() == "kept"
    assert "nothing: no such file" in fails("score", model, tmp_path / "nothing", "--output", tmp_path / "o")
    twice = fails("score", model, kinds[0], kinds[0], "--output", tmp_path / "o", status=2)
    assert "named by two of the inputs" in twice
    assert "cannot be read" in fails("score", tmp_path / "no", kinds[0], "--output", tmp_path / "o")
    assert "0 negative documents for" in fails("train", "--positive", kinds[0], "--output", tmp_path / "m")
    assert not (tmp_path / "o").exists()
    for arguments in (["quality"], ["quality", "train", "--output", "m"], ["quality", "train", "--bits", "x"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
    assert "no texts" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["quality"], ["quality", "train"], ["quality", "score"]])
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--help"])
    assert error.value.code == 0
    assert "examples:\n  qwen-data quality " in capsys.readouterr().out


def test_scores_of_other_formats(kinds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    assert train(kinds, tmp_path / "model") == 0
    pages = [text for text, _ in labelled_texts(3)]
    pyarrow.parquet.write_table(pa.table({"page": pages, "n": range(6)}), tmp_path / "pages.parquet")
    arguments = ["quality", "score", str(tmp_path / "model"), str(tmp_path / "pages.parquet"), "--text-key", "page"]
    assert main([*arguments, "--output", str(tmp_path / "a.jsonl.gz")]) == 0
    assert main([*arguments, "--output", str(tmp_path / "b.jsonl")]) == 0
    plain = (tmp_path / "b.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == plain
    records = [orjson.loads(line) for line in plain.splitlines()]
    assert [(record["page"], record["n"]) for record in records] == list(zip(pages, range(6), strict=True))
    assert [record["quality"] > 0.5 for record in records] == [False, True] * 3
    capsys.readouterr()


def test_progress_adds_up_to_the_files(kinds: tuple[Path, Path]) -> None:
    class Steps:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def advance(self, amount: int) -> None:
            self.steps.append(amount)

    steps = Steps()
    inputs = [LabelledInput(path=str(path), label=True) for path in kinds]
    rejected: list[Rejection] = []
    assert len(list(read_labelled(inputs, rejected.append, progress=steps))) == 300
    assert len(rejected) == 2
    assert sum(steps.steps) == total_bytes([str(path) for path in kinds])
    assert min(steps.steps) >= 0
    assert len(steps.steps) > 100
