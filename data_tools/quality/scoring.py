"""Records to records with a score: a stream, whatever the size of the input."""

import gzip
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import zstandard

from data_tools.io.atomic_file import atomic_output
from data_tools.io.progress import Progress
from data_tools.quality.model import SCORE_KEY, QualityModel
from data_tools.readers.inputs import Reject, read_records
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES, Rejection
from data_tools.readers.record import BadRecord, ReadOptions

_BATCH_RECORDS = 2048
_BATCH_CHARACTERS = 4 * 1024 * 1024


def score_files(
    model: QualityModel,
    inputs: Sequence[str],
    output: Path,
    reject: Reject,
    *,
    text_key: str = "text",
    threads: int = 1,
    progress: Progress | None = None,
) -> int:
    """Writes every record with its score under "quality", in the order of the input.

    Args:
        model: of `QualityModel.load`.
        inputs: files, folders, patterns, URLs.
        output: JSON Lines, compressed if its name ends in .zst or .gz; appears whole.
        reject: is given every record without text.
        text_key: key of the text.
        threads: of the kernel.
        progress: is told roughly how many bytes of the files are done.
    Returns:
        Records written.
    Raises:
        DataError: a file cannot be found or opened.
        OSError: the output cannot be written.
    """
    options = ReadOptions(text_key=text_key, keep=None, max_document_bytes=MAX_DOCUMENT_BYTES)
    num_written = 0
    with ExitStack() as stack:
        stream = _compressing(stack, output)
        for batch in _batches(inputs, options, reject, progress):
            scores = model.scores([record[text_key] for record in batch], threads).tolist()
            for record, score in zip(batch, scores, strict=True):
                stream.write(orjson.dumps({**record, SCORE_KEY: score}, option=orjson.OPT_APPEND_NEWLINE, default=str))
            num_written += len(batch)
    return num_written


def _compressing(stack: ExitStack, output: Path) -> Any:
    target = stack.enter_context(atomic_output(output))
    if output.suffix == ".zst":
        return stack.enter_context(zstandard.ZstdCompressor().stream_writer(target, closefd=False))
    if output.suffix == ".gz":
        # No time of writing in the header: equal records give equal bytes.
        return stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0))
    return target


def _batches(
    inputs: Sequence[str], options: ReadOptions, reject: Reject, progress: Progress | None
) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    characters = 0
    for pattern in inputs:
        for path, record in read_records(pattern, options, progress):
            if isinstance(record, BadRecord):
                reject(Rejection(path, record.line, record.reason, record.detail))
                continue
            batch.append({options.text_key: record.text, **record.fields})
            characters += len(record.text)
            if len(batch) >= _BATCH_RECORDS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch
