"""The operations of the stage `tokenize`: encode a shard, gather a bucket, seal a corpus."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from data_tools import _native
from data_tools.atomic_file import atomic_output
from data_tools.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, LineBatch
from data_tools.checksums import StreamChecksums, read_pieces, sha256_of_file
from data_tools.corpus_index import DTYPE_CODES
from data_tools.corpus_writer import TOKEN_DTYPE, publish, scratch_folder
from data_tools.jsonl import LARGEST_DOCUMENT_BYTES, Line, read_lines
from data_tools.lock import corpus_lock
from data_tools.pipeline.input_list import read_input_list
from data_tools.pipeline.task import Task, TaskInput, TaskResult
from data_tools.readers.files import open_input
from data_tools.readers.jsonl_records import LineRange
from data_tools.shuffle import document_keys
from data_tools.sidecar import FileDigest, InputFile, Sidecar, corpus_path
from data_tools.tokenizer import END_OF_DOCUMENT, FINGERPRINT
from data_tools.version import version

ENTRY = np.dtype([("key", "<u8"), ("file", "<u4"), ("offset", "<u8"), ("length", "<i4")])
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_LINES = 8192
# A line of a shard holds the text with JSON's escapes and the document's other fields.
_LONGEST_LINE = 7 * LARGEST_DOCUMENT_BYTES


@lru_cache(maxsize=1)
def _encoder(settings: EncodingSettings) -> BatchEncoder:
    """Kept from task to task in a process: building it takes longer than encoding a small shard."""
    return BatchEncoder(settings)


def encode_shard(task: Task) -> TaskResult:
    """The operation `tokenize_encode`: runs of documents sorted by (key, file, offset), .tokens and .index."""
    options = task.options
    encoder = _encoder(EncodingSettings("text", options["encoder"], options["check_interval"]))
    folder = Path(task.folder)
    runs = _RunWriter(folder, task.name, options)
    rejected: Counter[str] = Counter()
    rejected_name = f"{task.name}.rejected.jsonl"
    with atomic_output(folder / rejected_name) as stream:
        for batch in _line_batches(task.inputs[0], options["file_number"]):
            encoded = encoder.encode(batch)
            runs.add(encoded)
            for rejection in encoded.rejections:
                rejected[rejection.reason] += 1
                stream.write(orjson.dumps(rejection, option=orjson.OPT_APPEND_NEWLINE))
        runs.flush()
    return TaskResult(
        outputs=[rejected_name, *(f"{name}.{suffix}" for name in runs.names for suffix in ("tokens", "index"))],
        records_in=runs.num_documents + rejected.total(),
        records_out=runs.num_documents,
        rejected=rejected,
        values={"runs": runs.names, "tokens": runs.num_tokens},
    )


def _line_batches(shard: TaskInput, file_number: int) -> Iterator[LineBatch]:
    first_record, num_bytes = 0, 0
    lines: list[Line] = []
    with open_input(shard.path) as stream:
        for line in read_lines(LineRange(stream, shard), _LONGEST_LINE):
            lines.append(line)
            num_bytes += len(line.content)
            if num_bytes >= _BATCH_BYTES or len(lines) >= _BATCH_LINES:
                num_lines = len(lines)
                yield LineBatch(shard.path, file_number, first_record, lines)
                first_record += num_lines
                lines, num_bytes = [], 0
    if lines:
        yield LineBatch(shard.path, file_number, first_record, lines)


class _RunWriter:
    """Collects documents and writes them, sorted, whenever `run_tokens` have come together."""

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = name
        self._options = options
        self._batches: list[EncodedBatch] = []
        self._tokens_held = 0
        self.names: list[str] = []
        self.num_documents = 0
        self.num_tokens = 0

    def add(self, batch: EncodedBatch) -> None:
        self._batches.append(batch)
        self._tokens_held += len(batch.tokens) + len(batch.lengths)
        if self._tokens_held >= self._options["run_tokens"]:
            self.flush()

    def flush(self) -> None:
        lengths = np.concatenate([np.empty(0, np.int32), *(batch.lengths for batch in self._batches)])
        if not len(lengths):
            return
        # A very long document is a batch of its own and is not copied.
        pieces = [batch.tokens for batch in self._batches]
        tokens = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        del pieces
        offsets = np.concatenate([batch.offsets for batch in self._batches])
        self._batches, self._tokens_held = [], 0
        options = self._options
        entries = np.zeros(len(lengths), dtype=ENTRY)
        if options["shuffle"]:
            entries["key"] = document_keys(options["seed"], options["file_number"], offsets)
        entries["file"], entries["offset"], entries["length"] = options["file_number"], offsets, lengths
        order = np.lexsort((offsets, entries["key"]))
        name = f"{self._name}.run-{len(self.names):04d}"
        with atomic_output(self._folder / f"{name}.tokens") as stream:
            stream.write(gather(tokens, lengths, order).data)
        with atomic_output(self._folder / f"{name}.index") as stream:
            stream.write(entries[order].tobytes())
        self.names.append(name)
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens) + len(lengths)


def gather(
    tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], order: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Documents in ``order``, each followed by END_OF_DOCUMENT.

    Args:
        tokens: [sum of lengths] documents one after the other, without end tokens.
        lengths: [n] tokens of each.
        order: [n] positions.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    out = np.empty(len(tokens) + len(lengths), dtype=np.int32)
    _native.gather_documents(tokens, starts, lengths, order.astype(np.int64), END_OF_DOCUMENT, out)
    return out


def gather_bucket(task: Task) -> TaskResult:
    """The operation `tokenize_bucket`: one range of keys out of every run, in corpus order, as .tokens and .lengths."""
    bucket, num_buckets = task.options["bucket"], task.options["num_buckets"]
    files = read_input_list(task.inputs[0])
    runs = [(Path(index.path), Path(tokens.path)) for index, tokens in zip(files[::2], files[1::2], strict=True)]
    if not task.options["shuffle"]:
        runs, low, high = runs[bucket : bucket + 1], 0, 2**64
    else:
        low, high = bucket * 2**64 // num_buckets, (bucket + 1) * 2**64 // num_buckets
    entries, pieces = [np.empty(0, dtype=ENTRY)], [np.empty(0, dtype=np.int32)]
    for index_path, tokens_path in runs:
        index = np.memmap(index_path, dtype=ENTRY, mode="r")
        first = int(np.searchsorted(index["key"], np.uint64(low)))
        last = len(index) if high == 2**64 else int(np.searchsorted(index["key"], np.uint64(high)))
        if first == last:
            continue
        begin = int(index["length"][:first].sum(dtype=np.int64)) + first
        count = int(index["length"][first:last].sum(dtype=np.int64)) + last - first
        entries.append(np.array(index[first:last]))
        pieces.append(np.fromfile(tokens_path, dtype=TOKEN_DTYPE, count=count, offset=4 * begin))
    entry, tokens = np.concatenate(entries), np.concatenate(pieces)
    del pieces
    order = np.lexsort((entry["offset"], entry["file"], entry["key"]))
    lengths = np.ascontiguousarray(entry["length"]) + np.int32(1)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    out = np.empty(len(tokens), dtype=np.int32)
    # The documents of runs have their end tokens already; the kernel writes each anew.
    _native.gather_documents(tokens, starts, lengths - np.int32(1), order.astype(np.int64), END_OF_DOCUMENT, out)
    names = [f"{task.name}.tokens", f"{task.name}.lengths"]
    for name, array in zip(names, (out, lengths[order]), strict=True):
        with atomic_output(Path(task.folder, name)) as stream:
            stream.write(np.ascontiguousarray(array, dtype=TOKEN_DTYPE).data)
    return TaskResult(outputs=names, records_in=len(order), records_out=len(order))


def seal_corpus(task: Task) -> TaskResult:
    """The operation `tokenize_seal`: the buckets one after the other, index, checksums, sidecar."""
    work = Path(task.options["work"])
    prefix = Path(task.folder, task.name)
    with corpus_lock(prefix), scratch_folder(prefix) as folder:
        target = folder / "corpus"
        checksums = StreamChecksums()
        with atomic_output(corpus_path(target, "bin")) as stream, (folder / "lengths").open("wb") as lengths_stream:
            for one in read_input_list(_list(work / "buckets.json")):
                for piece in read_pieces(Path(one.path)):
                    if one.path.endswith(".lengths"):
                        lengths_stream.write(piece)
                        continue
                    checksums.update(piece)
                    stream.write(piece)
        with atomic_output(corpus_path(target, "crc")) as stream:
            stream.write(checksums.crc_bytes())
        lengths = np.memmap(folder / "lengths", dtype=np.int32, mode="r")
        index_path = corpus_path(target, "idx")
        _native.write_index(os.fsencode(index_path), lengths, DTYPE_CODES[TOKEN_DTYPE.name], TOKEN_DTYPE.itemsize)
        rejected = _write_rejections(work, prefix)
        digests = {"bin": FileDigest(size_bytes=checksums.size_bytes, sha256=checksums.sha256())}
        for suffix in ("idx", "crc"):
            path = corpus_path(target, suffix)
            digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
        sidecar = _sidecar(task, checksums.size_bytes // 4, len(lengths), rejected, digests)
        publish(folder, prefix, sidecar)
    names = [f"{task.name}.{suffix}" for suffix in ("bin", "idx", "crc", "json")]
    return TaskResult(
        outputs=names,
        records_in=sidecar.records_in,
        records_out=sidecar.num_documents,
        rejected=rejected,
        digests={f"{task.name}.{suffix}": (one.size_bytes, one.sha256) for suffix, one in digests.items()},
        values={"prefix": str(prefix), "tokens": sidecar.num_tokens},
    )


def _sidecar(
    task: Task, num_tokens: int, num_documents: int, rejected: Counter[str], digests: dict[str, FileDigest]
) -> Sidecar:
    inputs = []
    for shard in read_input_list(task.inputs[0]):
        status = Path(shard.path).stat()
        inputs.append(InputFile(path=shard.path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns))
    return Sidecar(
        dtype=TOKEN_DTYPE.name,
        num_tokens=num_tokens,
        num_documents=num_documents,
        end_of_document=END_OF_DOCUMENT,
        tokenizer=FINGERPRINT,
        shuffle_seed=task.options["seed"] if task.options["shuffle"] else None,
        records_in=num_documents + rejected.total(),
        rejected=dict(sorted(rejected.items())),
        bin=digests["bin"],
        idx=digests["idx"],
        crc=digests["crc"],
        inputs=tuple(inputs),
        tool_version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write_rejections(work: Path, prefix: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    path = corpus_path(prefix, "rejected.jsonl")
    lines = [
        line
        for one in read_input_list(_list(work / "rejections.json"))
        for line in Path(one.path).read_bytes().splitlines(keepends=True)
    ]
    counts.update(orjson.loads(line)["reason"] for line in lines)
    if not lines:
        path.unlink(missing_ok=True)
        return counts
    with atomic_output(path) as stream:
        stream.writelines(lines)
    return counts


def _list(path: Path) -> TaskInput:
    return TaskInput(path=str(path), size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
