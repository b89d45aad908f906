"""JSON Lines to a corpus: stream, encode, spool, and write the documents in shuffled order.

Memory does not grow with the text: a few batches of lines are in flight, and each document costs about 40 bytes.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_tools.batch_encoder import EncodingSettings, LineBatch
from data_tools.corpus_writer import TOKEN_DTYPE, Spool, publish, scratch_folder, write_token_files
from data_tools.encoder import ENCODERS
from data_tools.errors import DataError
from data_tools.jsonl import LARGEST_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES, Line, read_lines
from data_tools.lock import corpus_lock
from data_tools.progress import Progress, progress_bar
from data_tools.rejections import RejectionLog, rejected_path
from data_tools.shuffle import document_keys, shuffled_order
from data_tools.sidecar import FileDigest, InputFile, Sidecar, corpus_path
from data_tools.streams import InputStream
from data_tools.tokenizer import END_OF_DOCUMENT, FINGERPRINT
from data_tools.version import version
from data_tools.worker_pool import encoded_batches

_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_LINES = 8192


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How to tokenize.

    Attributes:
        text_key: key of the text in each record.
        seed: of the document order, 0 to 2^64 - 1.
        shuffle: False keeps the order of the input.
        workers: processes that encode; 1 encodes in this process with a thread for each core.
        encoder: "gigatoken" (fast) or "tiktoken" (reference).
        check_interval: one record in this many is compared with tiktoken, and the first 64.
        max_document_bytes: a longer line is rejected.
        overwrite: replace a corpus that is there.
        rejected: where rejected records are listed; None: PREFIX.rejected.jsonl.
    """

    text_key: str = "text"
    seed: int = 1234
    shuffle: bool = True
    workers: int = 1
    encoder: str = "gigatoken"
    check_interval: int = 1000
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    overwrite: bool = False
    rejected: Path | None = None

    def __post_init__(self) -> None:
        """Raises DataError naming the first option that is out of range."""
        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed={self.seed} is out of range, use 0 to 2^64 - 1")
        if self.workers < 1:
            raise DataError(f"workers={self.workers} must be at least 1")
        if self.check_interval < 1:
            raise DataError(f"check_interval={self.check_interval} must be at least 1")
        if not 1 <= self.max_document_bytes <= LARGEST_DOCUMENT_BYTES:
            raise DataError(
                f"max_document_bytes={self.max_document_bytes} must be 1 to {LARGEST_DOCUMENT_BYTES} (512 MiB)"
            )
        if self.encoder not in ENCODERS:
            raise DataError(f"encoder={self.encoder!r} is unknown, use one of {', '.join(ENCODERS)}")


def tokenize(inputs: Sequence[str | Path], prefix: str | Path, options: TokenizeOptions | None = None) -> Sidecar:
    """Makes the corpus PREFIX.bin, .idx, .crc, .json from JSON Lines files.

    Every document is its text in NFC encoded as ordinary text, then END_OF_DOCUMENT. Records that give no document are
    counted by reason in the sidecar and listed by file and line in PREFIX.rejected.jsonl. The same inputs and seed give
    the same bytes, whatever the number of workers.

    Args:
        inputs: JSONL files, plain, gzip or zstd, in the order that numbers the documents.
        prefix: path of the corpus without suffix; its folder is created if need be.
        options: how; the defaults if None.
    Raises:
        DataError: an input cannot be read, the corpus exists, another process is writing it, no record gave a
            document, or the fast encoder differs from the reference.
        OSError: the disk is full or fails. Nothing is left behind in either case.
    """
    options = options or TokenizeOptions()
    if not inputs:
        raise DataError("no input files; name at least one JSONL file")
    _require_file_name(prefix)
    _require_absent(prefix, options.overwrite)
    if options.rejected is not None and not options.rejected.absolute().parent.is_dir():
        raise DataError(f"{options.rejected}: its folder does not exist; create it or name another file")
    input_files = tuple(_input_file(Path(path)) for path in inputs)
    with corpus_lock(prefix):
        _require_absent(prefix, options.overwrite)  # Another run may have finished in between.
        return _tokenize(input_files, prefix, options)


def _tokenize(input_files: tuple[InputFile, ...], prefix: str | Path, options: TokenizeOptions) -> Sidecar:
    list_path = options.rejected or rejected_path(prefix)
    with scratch_folder(prefix) as folder, RejectionLog(folder / "rejected.jsonl") as rejections:
        with (
            Spool(folder / "spool") as spool,
            progress_bar("tokenizing", sum(file.size_bytes for file in input_files)) as progress,
        ):
            settings = EncodingSettings(options.text_key, options.encoder, options.check_interval)
            batches = _line_batches(input_files, options.max_document_bytes, progress)
            for batch in encoded_batches(settings, batches, options.workers):
                spool.add(batch.tokens, batch.lengths, document_keys(options.seed, batch.file_number, batch.offsets))
                rejections.add(batch.rejections)
        rejections.publish(list_path)
        if spool.num_documents == 0:
            raise DataError(_no_documents(input_files, rejections.counts, list_path))
        order = shuffled_order(spool.keys()) if options.shuffle else np.arange(spool.num_documents, dtype=np.int64)
        num_tokens = spool.num_tokens + spool.num_documents
        with progress_bar("writing", num_tokens * TOKEN_DTYPE.itemsize) as progress:
            digests = write_token_files(folder, spool, order, END_OF_DOCUMENT, progress)
        sidecar = _sidecar(spool, digests, rejections.counts, input_files, options)
        publish(folder, prefix, sidecar)
    return sidecar


def _sidecar(
    spool: Spool,
    digests: dict[str, FileDigest],
    rejected: Counter[str],
    inputs: tuple[InputFile, ...],
    options: TokenizeOptions,
) -> Sidecar:
    return Sidecar(
        dtype=TOKEN_DTYPE.name,
        num_tokens=spool.num_tokens + spool.num_documents,
        num_documents=spool.num_documents,
        end_of_document=END_OF_DOCUMENT,
        tokenizer=FINGERPRINT,
        shuffle_seed=options.seed if options.shuffle else None,
        records_in=spool.num_documents + rejected.total(),
        rejected=dict(sorted(rejected.items())),
        bin=digests["bin"],
        idx=digests["idx"],
        crc=digests["crc"],
        inputs=inputs,
        tool_version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _require_file_name(prefix: str | Path) -> None:
    if str(prefix).endswith(os.sep) or Path(prefix).name in ("", ".", ".."):
        raise DataError(f"{prefix}: names a folder; a corpus needs a file name too, as in {Path(prefix) / 'corpus'}")
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)


def _require_absent(prefix: str | Path, overwrite: bool) -> None:
    present = [str(path) for suffix in ("json", "bin", "idx", "crc") if (path := corpus_path(prefix, suffix)).exists()]
    if present and not overwrite:
        raise DataError(f"{', '.join(present)}: already there; use --overwrite to replace it, or another --output")


def _input_file(path: Path) -> InputFile:
    """Size and time of an input, found to be readable before any work is done."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{os.fsencode(path)!r}: the file name is not UTF-8; rename the file") from error
    InputStream(path).close()
    status = path.stat()
    return InputFile(path=str(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _line_batches(inputs: Sequence[InputFile], max_line_bytes: int, progress: Progress) -> Iterator[LineBatch]:
    """All lines of all inputs, a few megabytes at a time."""
    first_record = 0
    for file_number, file in enumerate(inputs):
        stream = InputStream(Path(file.path))
        reported = 0
        try:
            for lines in _grouped(read_lines(stream, max_line_bytes)):
                num_lines = len(lines)
                yield LineBatch(file.path, file_number, first_record, lines)
                first_record += num_lines
                progress.advance(stream.position - reported)
                reported = stream.position
        finally:
            stream.close()
        if _input_file(Path(file.path)) != file:
            raise DataError(f"{file.path}: changed while it was read; tokenize again when it is complete")


def _grouped(lines: Iterator[Line]) -> Iterator[list[Line]]:
    group: list[Line] = []
    num_bytes = 0
    for line in lines:
        group.append(line)
        num_bytes += len(line.content)
        if num_bytes >= _BATCH_BYTES or len(group) >= _BATCH_LINES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _no_documents(inputs: Sequence[InputFile], rejected: Counter[str], list_path: Path) -> str:
    names = ", ".join(file.path for file in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    if not rejected:
        return f"{names}: no records; the input is empty"
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    return (
        f"{names}: none of {rejected.total()} records gave a document ({reasons}); {list_path} lists them (--text-key "
        "names the key of the text)"
    )
