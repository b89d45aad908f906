"""Documents between stages: JSON Lines shards compressed with zstd, statistics counted while they are written."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from data_tools.engine.task import TaskResult, documents_file
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output
from data_tools.io.work_done import count_documents, counted
from data_tools.readers.jsonl import LARGEST_DOCUMENT_BYTES

# A line of a shard holds the text with JSON's escapes and the document's other fields.
LONGEST_LINE_BYTES = 7 * LARGEST_DOCUMENT_BYTES
_BATCH_DOCUMENTS = 2048
_BATCH_CHARACTERS = 2 * 1024 * 1024
_EXAMPLES_PER_REASON = 3
_EXAMPLE_CHARACTERS = 400
_ZSTD_LEVEL = 1

# Keys of `Document.metadata`.
CLUSTER_SIZE = "cluster_size"  # documents this one stands for, itself included; not there for 1


@dataclass(slots=True)
class Document:
    """One document on its way through the pipeline.

    Attributes:
        id: where it came from: "path@byte offset" (or "path@row"), unique in a pipeline.
        source: name of the data set, from the pipeline file.
        text: the text.
        language: "" until the language stage has seen it; "code" for program text.
        metadata: other keys of the record that the read stage was told to keep, and what stages found out:
            CLUSTER_SIZE, the score of the quality stage.
    """

    id: str
    source: str
    text: str
    language: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def document_numbers(documents: Sequence[Document]) -> npt.NDArray[np.uint64]:
    """[n] 64-bit hash of each text: equal texts have equal numbers, wherever they stand."""
    digests = (hashlib.blake2b(document.text.encode("utf-8"), digest_size=8).digest() for document in documents)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def cluster_size(document: Document) -> int:
    """How many documents of the input this one stands for after removal of duplicates, itself included.

    Raises:
        DataError: the record brought a value along that is no such number.
    """
    size = document.metadata.get(CLUSTER_SIZE, 1)
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size < 2**63:
        raise DataError(f"{document.id}: {CLUSTER_SIZE}={size!r} must be a whole number of at least 1; do not keep it")
    return size


class Drop(NamedTuple):
    """Why a document goes no further."""

    reason: str  # one of a fixed set of words; counted
    detail: str = ""  # for people


class Repeat(NamedTuple):
    """A document that goes on several times."""

    document: Document
    times: int  # at least 1


@dataclass
class DocumentStatistics:
    """What the report shows of the documents that leave a stage, and of those that do not."""

    by_source: dict[str, list[int]] = field(default_factory=dict)  # name -> [documents, UTF-8 bytes]
    by_language: dict[str, list[int]] = field(default_factory=dict)
    by_length: Counter[str] = field(default_factory=Counter)  # bits of the number of characters -> documents
    dropped_by_source: dict[str, Counter[str]] = field(default_factory=dict)  # reason -> name -> documents
    dropped_by_language: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, document: Document, num_bytes: int) -> None:
        """Counts one document."""
        for table, name in ((self.by_source, document.source), (self.by_language, document.language)):
            entry = table.setdefault(name, [0, 0])
            entry[0] += 1
            entry[1] += num_bytes
        self.by_length[str(len(document.text).bit_length())] += 1

    def add_dropped(self, reason: str, source: str, language: str = "") -> None:
        """Counts one document that does not leave the stage."""
        self.dropped_by_source.setdefault(reason, Counter())[source] += 1
        self.dropped_by_language.setdefault(reason, Counter())[language] += 1

    def merge(self, other: dict[str, Any]) -> None:
        """Adds the counts of `as_dict` of another part."""
        for name in ("by_source", "by_language"):
            table = getattr(self, name)
            for key, (documents, num_bytes) in other.get(name, {}).items():
                entry = table.setdefault(key, [0, 0])
                entry[0] += documents
                entry[1] += num_bytes
        self.by_length.update(other.get("by_length", {}))
        for name in ("dropped_by_source", "dropped_by_language"):
            for reason, counts in other.get(name, {}).items():
                getattr(self, name).setdefault(reason, Counter()).update(counts)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest; keys sorted, so that equal counts give equal bytes."""
        return {
            "by_source": dict(sorted(self.by_source.items())),
            "by_language": dict(sorted(self.by_language.items())),
            "by_length": dict(sorted(self.by_length.items(), key=lambda item: int(item[0]))),
            "dropped_by_source": _sorted(self.dropped_by_source),
            "dropped_by_language": _sorted(self.dropped_by_language),
        }


def _sorted(table: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {reason: dict(sorted(counts.items())) for reason, counts in sorted(table.items())}


def shortened(document: Document) -> dict[str, str]:
    """A document as an example: its id and the beginning of its text."""
    return {"id": document.id, "text": document.text[:_EXAMPLE_CHARACTERS]}


class ShardWriter:
    """Writes the documents a task keeps and those it drops; both files appear whole when the block ends.

    Attributes:
        records_out: documents kept.
        copied: documents kept beyond the first time.
        rejected: reason -> documents dropped.
        statistics: of the documents kept.
        examples: reason -> the first few dropped documents, shortened.
    """

    def __init__(self, folder: Path, name: str, *, keep_dropped: bool = True) -> None:
        self.output = documents_file(name)
        self.dropped = f"{name}.dropped.jsonl.zst"
        self._folder = folder
        self._keep_dropped = keep_dropped
        self._stack = ExitStack()
        self.records_out = 0
        self.copied = 0
        self.rejected: Counter[str] = Counter()
        self.statistics = DocumentStatistics()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def __enter__(self) -> "ShardWriter":
        self._kept_stream = self._open(self.output)
        self._dropped_stream = self._open(self.dropped) if self._keep_dropped else None
        return self

    def _open(self, name: str) -> Any:
        target = self._stack.enter_context(atomic_output(self._folder / name, sync=False))
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        return self._stack.enter_context(compressor.stream_writer(target, closefd=False))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def keep(self, document: Document) -> None:
        """Writes a document that goes on."""
        # No name for the line: of a very long document every copy counts.
        self._kept_stream.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
        self.records_out += 1
        text = document.text
        self.statistics.add(document, len(text) if text.isascii() else len(text.encode("utf-8")))

    def repeat(self, document: Document, times: int) -> None:
        """Writes a document ``times`` times; copies get ids of their own, ID#2, ID#3, ..."""
        self.keep(document)
        for number in range(2, times + 1):
            self.keep(replace(document, id=f"{document.id}#{number}"))
            self.copied += 1

    def drop(self, document: Document, drop: Drop) -> None:
        """Counts a document that does not, and keeps it aside."""
        self.rejected[drop.reason] += 1
        self.statistics.add_dropped(drop.reason, document.source, document.language)
        examples = self.examples.setdefault(drop.reason, [])
        if len(examples) < _EXAMPLES_PER_REASON:
            examples.append({**shortened(document), "detail": drop.detail})
        if self._dropped_stream is not None:
            entry = {"reason": drop.reason, "detail": drop.detail, "document": document}
            self._dropped_stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def result(self, records_in: int, *other_outputs: str, values: Mapping[str, Any] | None = None) -> TaskResult:
        """What the task reports once the block has ended.

        Args:
            records_in: records read.
            other_outputs: files that the task wrote beside those of this writer.
            values: see `TaskResult`.
        """
        return TaskResult(
            outputs=[self.output, *([self.dropped] if self._keep_dropped else []), *other_outputs],
            records_in=records_in,
            records_out=self.records_out,
            copied=self.copied,
            rejected=self.rejected,
            statistics=self.statistics.as_dict(),
            examples=self.examples,
            values=values or {},
        )


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a shard.

    Raises:
        DataError: the shard is missing or damaged; it was written by an earlier stage, so its checksum is known.
    """
    try:
        with counted(path.open("rb")) as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
            for line in _lines(reader):
                fields = orjson.loads(line)
                del line  # A long line is not held beside its document.
                yield Document(**fields)
    except (OSError, zstandard.ZstdError, orjson.JSONDecodeError, TypeError) as error:
        raise DataError(f"{path}: the shard cannot be read: {error}; delete it and run the pipeline again") from error


def _lines(reader: Any) -> Iterator[bytes]:
    parts: list[bytes] = []
    while piece := reader.read(1024 * 1024):
        first, *others = piece.split(b"\n")
        count_documents(len(others))
        parts.append(first)
        for other in others:
            complete = [b"".join(parts)]
            parts = [other]
            yield complete.pop()
    if any(parts):
        raise zstandard.ZstdError("it ends in the middle of a line")


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents, a few megabytes at a time."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
