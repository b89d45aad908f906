"""The operation `tokenize_encode`: JSON Lines to runs, documents sorted by (key, file, offset)."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.corpus.document_order import ordered_pieces
from data_tools.corpus.shuffle import document_keys
from data_tools.engine.task import Task, TaskResult
from data_tools.engine.work_sharing import work_sharing
from data_tools.io.atomic_file import atomic_output
from data_tools.io.checksums import BlockCrcs
from data_tools.io.direct_output import DirectOutput
from data_tools.io.file_range import FileRange
from data_tools.readers.files import check_unchanged, open_input
from data_tools.readers.jsonl import Line, RejectedRecordError
from data_tools.readers.jsonl_records import LineRange
from data_tools.readers.line_blocks import LineBlock, read_blocks
from data_tools.readers.record import BadRecord
from data_tools.stages.tokenize_runs import ENTRY, index_content
from data_tools.tokenizer.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, Place, Sample
from data_tools.tokenizer.qwen import END_OF_DOCUMENT

# The first records are all compared with the reference encoder, later ones by sample.
NUM_FIRST_CHECKED = 64
# Characters of samples that may wait for the reference.
_CHECKED_AT_ONCE = 1024 * 1024
# What an entry of the index takes while it is sorted, in tokens.
_ENTRY_TOKENS = 16


@lru_cache(maxsize=1)
def _encoder(settings: EncodingSettings) -> BatchEncoder:
    """Kept from task to task in a process: building it takes longer than encoding a small shard."""
    return BatchEncoder(settings)


def encode_part(task: Task) -> TaskResult:
    """The operation `tokenize_encode`: ranges of files to NAME.run-NNNN.tokens and .index, and NAME.bad.jsonl.

    The options are text_key, encoder, check_interval, all_checked (how many first records are all compared with the
    reference), max_line_bytes, run_tokens, num_ranges (of keys in an index), seed, shuffle, and files: the numbers of
    the inputs among all files.
    """
    options = task.options
    encoder = _encoder(
        EncodingSettings(
            text_key=options["text_key"],
            encoder=options["encoder"],
            check_interval=options["check_interval"],
            max_line_bytes=options["max_line_bytes"],
        )
    )
    runs = RunWriter(Path(task.folder), task.name, options)
    samples = Samples(encoder)
    rejected: Counter[str] = Counter()
    num_lines: list[int] = []
    bad_name = f"{task.name}.bad.jsonl"
    with runs, atomic_output(Path(task.folder, bad_name), sync=False) as stream:
        for number, (part, file_number) in enumerate(zip(task.inputs, options["files"], strict=True)):
            with open_input(part.path) as source:
                lines = LineRange(source, part)
                for bad in _encode_lines(encoder, lines, part, file_number, options, runs, samples):
                    rejected[bad.reason] += 1
                    entry = [number, bad.line, bad.reason, bad.detail]
                    stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            num_lines.append(lines.num_lines)
            if part.sha256 is None:
                check_unchanged(part)
        runs.flush()
    return TaskResult(
        outputs=[bad_name, *runs.digests],
        records_in=runs.num_documents + rejected.total(),
        records_out=runs.num_documents,
        rejected=rejected,
        values={"runs": runs.names, "tokens": runs.num_tokens, "lines": num_lines},
        digests=runs.digests,
        check=lambda: _last_look(runs, samples),
    )


def _last_look(runs: "RunWriter", samples: "Samples") -> None:
    runs.publish()
    samples.check()


def _encode_lines(
    encoder: BatchEncoder,
    lines: LineRange,
    part: FileRange,
    file_number: int,
    options: Mapping[str, Any],
    runs: "RunWriter",
    samples: "Samples",
) -> Iterator[BadRecord]:
    def encoded(one: _Placed) -> tuple[_Placed, EncodedBatch | None]:
        return one, _encoded(encoder, one)

    for (found, place), batch in work_sharing().in_order(encoded, _placed_blocks(lines, part, options)):
        # Numbers and offsets of what is read count from the beginning of what was given.
        if batch is None:
            assert isinstance(found, Line)
            try:
                runs.add_long(file_number, found.offset + lines.origin, encoder.encode_long(found, place))
            except RejectedRecordError as error:
                yield BadRecord(found.number - lines.skipped_lines, error.reason, error.detail)
            continue
        runs.add(file_number, batch._replace(offsets=batch.offsets + np.uint64(lines.origin)))
        for bad in batch.rejections:
            yield bad._replace(line=bad.line - lines.skipped_lines)
        samples.add(place, batch.samples)


class Samples:
    """Documents that wait to be compared with the reference.

    Not at once: building the reference holds the interpreter's lock for a tenth of a second, in which all threads of a
    process would have nothing to do before they have begun. At the end of a task the others encode meanwhile.
    """

    def __init__(self, encoder: BatchEncoder) -> None:
        self._encoder = encoder
        self._waiting: list[tuple[Place, Sequence[Sample]]] = []
        self._characters = 0

    def add(self, place: Place, samples: Sequence[Sample]) -> None:
        """Takes those of a batch; checks all that wait if they are many."""
        self._waiting.append((place, samples))
        self._characters += sum(len(sample.text) for sample in samples)
        if self._characters > _CHECKED_AT_ONCE:
            self.check()

    def check(self) -> None:
        """Compares all that wait.

        Raises:
            DataError: one differs; names file and line.
        """
        for place, samples in self._waiting:
            self._encoder.check(place, samples)
        self._waiting, self._characters = [], 0


class _Placed(NamedTuple):
    found: LineBlock | Line
    place: Place


def _placed_blocks(lines: LineRange, part: FileRange, options: Mapping[str, Any]) -> Iterator[_Placed]:
    first_record = 0
    for found in read_blocks(lines, options["max_line_bytes"]):
        yield _Placed(found, Place(part.path, lines.skipped_lines, first_record, options["all_checked"]))
        first_record += 1 if isinstance(found, Line) else found.num_records


def _encoded(encoder: BatchEncoder, one: _Placed) -> EncodedBatch | None:
    """The documents of a block; None for a long line, of which not all ids may be in memory."""
    if not isinstance(one.found, Line):
        return encoder.encode_block(one.found, one.place)
    return encoder.encode_lines([one.found], one.place) if one.found.reason else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class RunWriter:
    """Collects documents and writes them, sorted, before more than `run_tokens` have come together.

    A context; if it ends by an exception, what has no name yet is gone.

    Attributes:
        names: the runs, in order.
        digests: file -> size and a name of its content: SHA-256, of runs that of the CRCs of its blocks, which take a
            tenth of the time. Nobody asks more of a run than whether it is the same.
        num_documents, num_tokens: written so far, end-of-document tokens included.
    """

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = name
        self._seed: int = options["seed"]
        self._shuffle: bool = options["shuffle"]
        self._num_ranges: int = options["num_ranges"]
        self._run_tokens: int = options["run_tokens"]
        self._held_tokens = 0
        self._held_documents = 0
        self._held: list[tuple[int, EncodedBatch]] = []
        self.names: list[str] = []
        self.digests: dict[str, tuple[int, str]] = {}
        self.num_documents = 0
        self.num_tokens = 0
        self._written: DirectOutput | None = None  # of which the disk may not have all yet

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._written is not None:
            self._written.discard()

    def publish(self) -> None:
        """Waits until the disk has what was written; before that the last run has no name.

        Raises:
            OSError: the disk is full or fails.
        """
        written, self._written = self._written, None
        if written is not None:
            written.publish()

    def _new_file(self, name: str, num_blocks: int) -> DirectOutput:
        self.publish()
        self._written = DirectOutput(self._folder / f"{name}.tokens", num_blocks=num_blocks)
        return self._written

    def add(self, file_number: int, batch: EncodedBatch) -> None:
        """Takes a batch of documents of one file."""
        size = len(batch.tokens)
        needed = self._held_tokens + size + _ENTRY_TOKENS * (self._held_documents + len(batch.lengths))
        if self._held and needed > self._run_tokens:
            self.flush()
        self._held_tokens += size
        self._held_documents += len(batch.lengths)
        self._held.append((file_number, batch))

    def add_long(self, file_number: int, offset: int, pieces: Iterator[npt.NDArray[np.int32]]) -> None:
        """Takes a document of any size; it becomes a run of its own.

        Raises:
            RejectedRecordError: out of ``pieces``; nothing is left of the document.
        """
        if not self._shuffle:
            self.flush()  # What came before it in the input comes before it in the corpus.
        name = self._next_name()
        length = 0
        checksums = BlockCrcs()
        # Memory counts more than time where the line alone takes much of it.
        file = self._new_file(name, num_blocks=1)
        try:
            for piece in pieces:
                length += len(piece)
                file.write(piece.data.cast("B"))
                checksums.update(piece.data.cast("B"))
        except RejectedRecordError:
            file.discard()
            self._written = None
            raise
        end = np.array([END_OF_DOCUMENT], dtype=np.int32)
        checksums.update(end.data.cast("B"))
        file.write(end.data.cast("B"))
        self.digests[f"{name}.tokens"] = (4 * (length + 1), _sha256(checksums.crc_bytes()))
        self._write_index(name, self._entries(file_number, np.array([offset], np.uint64), np.array([length], np.int32)))
        self.num_tokens += length + 1

    def flush(self) -> None:
        """Writes what is held."""
        if not self._held_documents:
            self._held = []
            return
        parts = [self._entries(number, batch.offsets, batch.lengths) for number, batch in self._held]
        entries = parts[0] if len(parts) == 1 else np.concatenate(parts)
        starts = np.cumsum(entries["length"], dtype=np.int64) - entries["length"]
        order = np.lexsort((entries["offset"], entries["file"], entries["key"]))
        lengths = np.ascontiguousarray(entries["length"])
        name = self._next_name()
        checksums = BlockCrcs()
        file = self._new_file(name, num_blocks=2)
        tokens = [batch.tokens for _, batch in self._held]
        for piece in ordered_pieces(tokens, starts, lengths, order, END_OF_DOCUMENT):
            file.write(piece.data.cast("B"))
            checksums.update(piece.data.cast("B"))
        num_tokens = self._held_tokens + self._held_documents
        self.digests[f"{name}.tokens"] = (4 * num_tokens, _sha256(checksums.crc_bytes()))
        self._write_index(name, entries[order])
        self.num_tokens += num_tokens
        self._held, self._held_tokens, self._held_documents = [], 0, 0

    def _next_name(self) -> str:
        return f"{self._name}.run-{len(self.names):04d}"

    def _entries(
        self, file_number: int, offsets: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[Any]:
        entries = np.zeros(len(lengths), dtype=ENTRY)
        if self._shuffle:
            entries["key"] = document_keys(self._seed, file_number, offsets)
        entries["file"], entries["offset"], entries["length"] = file_number, offsets, lengths
        return entries

    def _write_index(self, name: str, entries: npt.NDArray[Any]) -> None:
        content = index_content(entries, self._num_ranges)
        with atomic_output(self._folder / f"{name}.index", sync=False) as stream:
            stream.write(content)
        self.digests[f"{name}.index"] = (len(content), _sha256(content))
        self.names.append(name)
        self.num_documents += len(entries)
