"""Names that are paths, links that lead out, and other people's files: nothing outside of a run's own is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_tools.cli import main
from data_tools.engine.executor import InProcessExecutor
from data_tools.engine.task import Task, finished
from data_tools.errors import DataError
from data_tools.io.owned_paths import is_plain_name, is_plain_path, remove_tree, require_below
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import run_pipeline

TEXTS = [f"Document number {number} is about something else than the others." for number in range(30)]


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else "other"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def bystander(tmp_path: Path) -> Path:
    """A folder of somebody else's, with the names of what a stage removes."""
    folder = tmp_path / "bystander"
    for name in ("runs/web.txt", "buckets/b.bin", "part-000000.jsonl.zst", "notes.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")
    return folder


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    """Writes input and pipeline file."""

    def write(source: str = "web", stages: str = "", output: str = "out") -> Path:
        (tmp_path / "web.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in TEXTS))
        path = tmp_path / "pipeline.yaml"
        path.write_text(
            f"output: {tmp_path / output}\nstages:\n  - kind: read\n    inputs:\n"
            f"      - {{path: {tmp_path}/web.jsonl, source: {orjson.dumps(source).decode()}}}\n{stages}"
        )
        return path

    return write


def run(path: Path) -> None:
    run_pipeline(load_pipeline(path), InProcessExecutor())


TOKENIZE = "  - kind: tokenize\n"
FUZZY = "  - kind: exact_dedup\n  - kind: fuzzy_dedup\n"


@pytest.mark.parametrize("source", ["../../../bystander", "..", "", ".hidden", "a/b", "a\nb", "x" * 201, "{out}/x"])
def test_a_source_that_is_a_path_is_refused_at_load(
    source: str,
    tmp_path: Path,
    bystander: Path,
    write_pipeline: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_pipeline(source.format(out=bystander), TOKENIZE)
    before = tree(bystander)
    assert main(["run", str(path)]) == 2
    assert "stages[0].inputs[0].source=" in capsys.readouterr().err
    assert tree(bystander) == before
    assert not (tmp_path / "out").exists()


def test_a_source_on_the_command_line_is_checked_too(
    tmp_path: Path, bystander: Path, write_pipeline: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_pipeline()
    before = tree(bystander)
    with pytest.raises(SystemExit) as left:
        main(["stage", "tokenize", f"{tmp_path}/web.jsonl", "--output", f"{tmp_path}/o", f"read.source={bystander}"])
    assert left.value.code == 2
    assert "source=" in capsys.readouterr().err
    assert tree(bystander) == before


def forge(path: Path, **changes: Any) -> None:
    """Changes values of a JSON file."""
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


@pytest.mark.parametrize("forged", ["source", "name", "output", "stage", "manifest"])
def test_a_forged_run_leads_nowhere(
    forged: str,
    tmp_path: Path,
    bystander: Path,
    write_pipeline: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(write_pipeline(output="theirs"))
    theirs = tmp_path / "theirs"
    part = theirs / "stages/01-read/part-000000.manifest.json"
    outside = "../../../bystander/part-000000"
    if forged == "source":
        forge(part, statistics={"by_source": {"../../../bystander": [30, 9]}, "by_language": {}, "by_length": {}})
    elif forged == "name":
        forge(part, name=outside)
    elif forged == "output":
        entry = {"size_bytes": 9, "sha256": "0" * 64}
        forge(part, outputs={f"{outside}.jsonl.zst": entry, "part-000000.jsonl.zst": entry})
    elif forged == "stage":
        forge(theirs / "pipeline.json", stages=[{"kind": "read", "name": "read/../../../../bystander"}])
    else:
        (bystander / "part-000000.manifest.json").write_bytes(part.read_bytes())
        forge(theirs / "stages/01-read/stage.json", manifests=["../../../bystander/part-000000.manifest.json"])
    before = tree(bystander)
    for kind in ("tokenize", "normalise"):
        assert main(["stage", kind, str(theirs), "--output", str(tmp_path / "ours")]) == 1
        assert str(theirs) in capsys.readouterr().err
    assert tree(bystander) == before


def test_a_forged_manifest_of_ones_own_is_done_again(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    run(write_pipeline())
    folder = tmp_path / "out/stages/01-read"
    manifest = orjson.loads((folder / "part-000000.manifest.json").read_bytes())
    task = Task(operation="read", folder=str(folder), name="part-000000", options={}, inputs=())
    (tmp_path / "secret").write_bytes(b"12345")
    outputs = {"../../../secret": {"size_bytes": 5, "sha256": "0" * 64}}
    forge(folder / "part-000000.manifest.json", key=task.key())
    assert finished(task) is not None
    forge(folder / "part-000000.manifest.json", key=task.key(), outputs=outputs)
    assert finished(task) is None
    assert manifest["name"] == "part-000000"


@pytest.mark.parametrize("link", ["stages", "corpora", "stages/02-tokenize", "stages/02-tokenize/web"])
def test_a_link_that_leads_out_is_refused(
    link: str, tmp_path: Path, bystander: Path, write_pipeline: Callable[..., Path]
) -> None:
    path = tmp_path / "out" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(bystander)
    before = tree(bystander)
    with pytest.raises(DataError, match=r"outside of .*remove the link|is a symbolic link"):
        run(write_pipeline(stages=TOKENIZE))
    assert tree(bystander) == before
    assert path.is_symlink()


def test_linked_signatures_are_refused(tmp_path: Path, bystander: Path, write_pipeline: Callable[..., Path]) -> None:
    link = tmp_path / "out/stages/03-fuzzy_dedup/buckets"
    link.parent.mkdir(parents=True)
    link.symlink_to(bystander)
    before = tree(bystander)
    with pytest.raises(DataError, match=r"outside of .*remove the link|is a symbolic link"):
        run(write_pipeline(stages=FUZZY))
    assert tree(bystander) == before


def test_a_linked_token_file_is_not_written_through(
    tmp_path: Path, bystander: Path, write_pipeline: Callable[..., Path]
) -> None:
    path = write_pipeline(stages=TOKENIZE)
    (tmp_path / "out").mkdir()
    run(path)
    # What a killed run would have left: no corpus, and the token file of the same runs.
    folder = tmp_path / "out/stages/02-tokenize/web"
    run_list = orjson.loads((folder / "seal.json").read_bytes())["target"]
    (tmp_path / "out/corpora/web.manifest.json").unlink()
    (folder / run_list).symlink_to(bystander / "notes.txt")
    before = tree(bystander)
    with pytest.raises(DataError, match=r"tokens-[0-9a-f]{64}\.bin: is a symbolic link"):
        run(path)
    assert tree(bystander) == before


def test_other_peoples_files_in_an_output_stay(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    path = write_pipeline(stages=FUZZY + TOKENIZE)
    run(path)
    out = tmp_path / "out"
    theirs = [
        out / ".swap.tmp",
        out / "mine" / ".draft.tmp",
        out / "mine" / ".part-000000.jsonl.zst.abcdefgh.tmp",
        out / "corpora" / ".editor.tmp",
        out / "stages" / "01-read" / "notes.txt",
        out / "stages" / "01-read" / ".notes.txt.abcdefgh.tmp",
        out / "stages" / "04-tokenize" / "web" / "tokens-of-mine.bin",
    ]
    ours = [
        out / "stages" / "01-read" / ".part-000000.jsonl.zst.abcdefgh.tmp",
        out / "stages" / "01-read" / "part-000099.jsonl.zst",
        out / "stages" / "03-fuzzy_dedup" / "buckets" / ".part-000000.bands.abcdefgh.tmp",
        out / "stages" / "03-fuzzy_dedup" / "buckets" / "part-000099.bands",
        out / "stages" / "03-fuzzy_dedup" / "lists" / ".round-001-large.json.abcdefgh.tmp",
        out / ".pipeline.json.abcdefgh.tmp",
        out / "corpora" / ".web.json.abcdefgh.tmp",
    ]
    for one in [*theirs, *ours]:
        one.parent.mkdir(exist_ok=True)
        one.write_text("x")
    (out / "corpora/web.manifest.json").unlink()
    run(path)
    assert [one for one in theirs if not one.exists()] == []
    assert [one for one in ours if one.exists()] == []


@pytest.mark.parametrize("name", ["web", "cc-2024.10", "中文 维基", "a_b", "x" * 200])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)
    assert is_plain_path(f"{name}/{name}")


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "/", "/etc", "a\x00b", "a\x1bb", "x" * 201, "é" * 101, None, 5])
def test_names_that_are_not_plain(name: object) -> None:
    assert not is_plain_name(name)
    assert not is_plain_path(f"x/{name}" if isinstance(name, str) else name)


def test_removal_stays_below_its_root(tmp_path: Path, bystander: Path) -> None:
    root = tmp_path / "root"
    (root / "work").mkdir(parents=True)
    (root / "work" / "link").symlink_to(bystander)
    (root / "out").symlink_to(bystander)
    before = tree(bystander)
    for outside in (bystander, root / ".." / "bystander", root / "out", root / "out" / "runs", root):
        with pytest.raises(DataError):
            remove_tree(outside, root)
    with pytest.raises(DataError, match="is really"):
        require_below(root / "out" / "new", root)
    remove_tree(root / "work", root)
    remove_tree(root / "absent", root)
    assert tree(bystander) == before
    assert [path.name for path in root.iterdir()] == ["out"]
