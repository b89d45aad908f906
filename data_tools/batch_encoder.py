"""Lines to token ids, a batch at a time; runs in the process of `tokenize` or in its workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.encoder import ENCODERS, Encoder, Ragged, TiktokenEncoder, check_against_reference
from data_tools.errors import DataError
from data_tools.jsonl import Line, RejectedRecordError, Rejection, parse_text

# The first records are all compared with the reference encoder, later ones by sample.
NUM_FIRST_CHECKED = 64


@dataclass(frozen=True)
class EncodingSettings:
    """What a worker needs to know.

    Attributes:
        text_key: key of the text in a record.
        encoder: name in `encoder.ENCODERS`.
        check_interval: of the records after the first 64, one in this many is compared with the reference encoder.
    """

    text_key: str
    encoder: str
    check_interval: int


class LineBatch(NamedTuple):
    """Consecutive lines of one file."""

    file: str
    file_number: int  # position of the file among the inputs
    first_record: int  # number of the first line among all records of all inputs
    lines: list[Line]


class EncodedBatch(NamedTuple):
    """The documents of a batch, in order, and what was rejected."""

    file_number: int
    tokens: npt.NDArray[np.int32]  # of all documents, one after the other, without end-of-document tokens
    lengths: npt.NDArray[np.int32]  # [documents] tokens
    offsets: npt.NDArray[np.uint64]  # [documents] byte offset of the record in its decompressed file
    rejections: list[Rejection]


class _Document(NamedTuple):
    line_number: int
    offset: int
    record: int  # among all records of all inputs
    text: str  # NFC


class BatchEncoder:
    """Parses, normalises and encodes lines, and compares a sample with the reference encoder."""

    def __init__(self, settings: EncodingSettings) -> None:
        self._settings = settings
        self._encoder: Encoder = ENCODERS[settings.encoder]()
        self._reference: Encoder | None = None if settings.encoder == "tiktoken" else TiktokenEncoder()

    def encode(self, batch: LineBatch) -> EncodedBatch:
        """The documents of ``batch``; its lines are used up, so that a long text is not in memory twice.

        Raises:
            DataError: the encoder and the reference differ.
        """
        documents, rejections = self._parse(batch)
        try:
            encoded = self._encoder.encode_batch([document.text for document in documents])
        except DataError:
            documents, encoded, unencodable = self._encode_one_by_one(batch, documents)
            rejections = sorted([*rejections, *unencodable], key=lambda rejection: rejection.line)
        self._check_sample(batch, documents, encoded)
        offsets = (document.offset for document in documents)
        return EncodedBatch(
            file_number=batch.file_number,
            tokens=encoded.tokens,
            lengths=encoded.lengths.astype(np.int32),
            offsets=np.fromiter(offsets, dtype=np.uint64, count=len(documents)),
            rejections=rejections,
        )

    def _parse(self, batch: LineBatch) -> tuple[list[_Document], list[Rejection]]:
        documents: list[_Document] = []
        rejections: list[Rejection] = []
        record = batch.first_record
        batch.lines.reverse()
        while batch.lines:
            line = batch.lines.pop()
            try:
                text = parse_text(line, self._settings.text_key)
                documents.append(_Document(line.number, line.offset, record, text))
            except RejectedRecordError as error:
                rejections.append(Rejection(batch.file, line.number, error.reason, error.detail))
            record += 1
        return documents, rejections

    def _encode_one_by_one(
        self, batch: LineBatch, documents: Sequence[_Document]
    ) -> tuple[list[_Document], Ragged, list[Rejection]]:
        kept: list[_Document] = []
        rows = [np.empty(0, dtype=np.int32)]
        rejections: list[Rejection] = []
        for document in documents:
            try:
                rows.append(self._encoder.encode_batch([document.text]).tokens)
                kept.append(document)
            except DataError as error:
                rejections.append(Rejection(batch.file, document.line_number, "not_encodable", str(error)))
        lengths = np.fromiter(map(len, rows[1:]), dtype=np.int64, count=len(kept))
        return kept, Ragged(np.concatenate(rows), lengths), rejections

    def _check_sample(self, batch: LineBatch, documents: Sequence[_Document], encoded: Ragged) -> None:
        if self._reference is None:
            return
        for document, length, end in zip(documents, encoded.lengths, np.cumsum(encoded.lengths), strict=True):
            if document.record >= NUM_FIRST_CHECKED and document.record % self._settings.check_interval:
                continue
            tokens = encoded.tokens[end - length : end]
            try:
                check_against_reference(self._encoder, self._reference, document.text, tokens)
            except DataError as error:
                raise DataError(f"{batch.file}:{document.line_number}: {error}") from error
