"""Merging corpora: the bytes of one run, checksums, refusals."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.corpus import concatenation
from data_tools.corpus.merge import merge
from data_tools.corpus.sidecar import Sidecar
from data_tools.corpus.verify import verify
from data_tools.errors import DataError

TEXTS = [f"document {number} " * (number % 9 + 1) for number in range(3000)]


def test_merged_is_what_one_run_would_have_written(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    parts = [make_corpus(TEXTS[first : first + 1000], f"part{first}", shuffle=False) for first in (0, 1000, 2000)]
    whole = make_corpus(TEXTS, "whole", shuffle=False)
    sidecar = merge(parts, tmp_path / "merged")
    for suffix in ("bin", "idx", "crc"):
        assert Path(f"{tmp_path}/merged.{suffix}").read_bytes() == Path(f"{whole}.{suffix}").read_bytes()
    assert verify(tmp_path / "merged") == sidecar
    assert sidecar.records_in == 3000
    assert [Path(file.path).name for file in sidecar.inputs] == ["part0.jsonl", "part1000.jsonl", "part2000.jsonl"]


@pytest.mark.parametrize("broken", [{"_copy_range"}, {"_copy_range", "_send"}])
def test_copies_where_the_file_system_cannot_share(
    make_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: set[str]
) -> None:
    def refuse(*unused: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    parts = [make_corpus(TEXTS[:500], "one"), make_corpus(TEXTS[500:1000], "two")]
    for name in broken:
        monkeypatch.setattr(concatenation, name, refuse)
    merge(parts, tmp_path / "merged")
    contents = [Path(f"{part}.bin").read_bytes() for part in parts]
    assert (tmp_path / "merged.bin").read_bytes() == b"".join(contents)


def test_a_damaged_input_is_found_on_the_way(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    parts = [make_corpus(TEXTS[:500], "one"), make_corpus(TEXTS[500:1000], "two")]
    with Path(f"{parts[1]}.bin").open("r+b") as stream:
        stream.seek(40)
        stream.write(b"\x01")
    with pytest.raises(DataError, match=r"two\.bin: is damaged"):
        merge(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_refusals(make_corpus: Callable[..., Path], tmp_path: Path, write_megatron_corpus: Callable[..., Path]) -> None:
    from data_tools.corpus.import_corpus import import_corpus

    one = make_corpus(["a"], "one")
    other = write_megatron_corpus([[[5, 7]], [[6, 7]]])
    import_corpus(other, end_of_document=7)
    with pytest.raises(DataError, match=r"end_of_document is 7, but that of .*one is 151643"):
        merge([one, other], tmp_path / "merged")
    with pytest.raises(DataError, match="is one of the corpora to merge"):
        merge([one], one, overwrite=True)
    with pytest.raises(DataError, match="no corpora to merge"):
        merge([], tmp_path / "merged")
    merge([one, one], tmp_path / "merged")
    assert Sidecar.read(tmp_path / "merged").num_documents == 2
    with pytest.raises(DataError, match="already there; use --overwrite"):
        merge([one], tmp_path / "merged")
