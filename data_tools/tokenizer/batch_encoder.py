"""Lines to token ids: short ones a batch at a time, a very long one in pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.readers.jsonl import Line, RejectedRecordError, parse_text
from data_tools.readers.record import BadRecord
from data_tools.tokenizer.encoder import ENCODERS, Encoder, Ragged, TiktokenEncoder, check_against_reference
from data_tools.tokenizer.long_text import LongText, UncuttableTextError

# Pieces of a long text that are encoded together, about four megabytes.
_PIECES_AT_ONCE = 8


@dataclass(frozen=True)
class EncodingSettings:
    """What a worker needs to know.

    Attributes:
        text_key: key of the text in a record.
        encoder: name in `encoder.ENCODERS`.
        check_interval: one record in this many is compared with the reference encoder.
    """

    text_key: str
    encoder: str
    check_interval: int


class LineBatch(NamedTuple):
    """Consecutive lines of one file.

    Attributes:
        file: its name, for messages.
        lines: the lines.
        first_record: number of the first line, as sampling counts.
        all_checked: how many records from number 0 on are all compared with the reference encoder.
    """

    file: str
    lines: list[Line]
    first_record: int
    all_checked: int


class EncodedBatch(NamedTuple):
    """The documents of a batch, in order, and the lines that gave none."""

    tokens: npt.NDArray[np.int32]  # of all documents, one after the other, without end-of-document tokens
    lengths: npt.NDArray[np.int32]  # [documents] tokens
    offsets: npt.NDArray[np.uint64]  # [documents] as given with the lines
    rejections: list[BadRecord]


class _Document(NamedTuple):
    line_number: int
    offset: int
    record: int  # as sampling counts
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
            tokens=encoded.tokens,
            lengths=encoded.lengths.astype(np.int32),
            offsets=np.fromiter(offsets, dtype=np.uint64, count=len(documents)),
            rejections=rejections,
        )

    def encode_long(self, file: str, line: Line) -> Iterator[npt.NDArray[np.int32]]:
        """The ids of the text of one line, a few megabytes of text at a time; memory does not grow with the line.

        Raises:
            RejectedRecordError: the line gives no document; found out before anything is encoded, except for
                not_encodable.
            DataError: the encoder and the reference differ on the beginning of the text.
        """
        pieces = LongText(line, self._settings.text_key).pieces()
        checked = self._reference is None
        try:
            while group := list(islice(pieces, _PIECES_AT_ONCE)):
                encoded = self._encoded_or_rejected(group)
                if not checked:
                    self._check(f"{file}:{line.number}", group[0], encoded.tokens[: encoded.lengths[0]])
                    checked = True
                yield encoded.tokens
        except UncuttableTextError as error:
            raise RejectedRecordError("not_encodable", str(error)) from error

    def _encoded_or_rejected(self, texts: Sequence[str]) -> Ragged:
        try:
            return self._encoder.encode_batch(texts)
        except DataError as error:
            raise RejectedRecordError("not_encodable", str(error)) from error

    def _parse(self, batch: LineBatch) -> tuple[list[_Document], list[BadRecord]]:
        documents: list[_Document] = []
        rejections: list[BadRecord] = []
        record = batch.first_record
        batch.lines.reverse()
        while batch.lines:
            line = batch.lines.pop()
            try:
                text = parse_text(line, self._settings.text_key)
                documents.append(_Document(line.number, line.offset, record, text))
            except RejectedRecordError as error:
                rejections.append(BadRecord(line.number, error.reason, error.detail))
            record += 1
        return documents, rejections

    def _encode_one_by_one(
        self, batch: LineBatch, documents: Sequence[_Document]
    ) -> tuple[list[_Document], Ragged, list[BadRecord]]:
        kept: list[_Document] = []
        rows = [np.empty(0, dtype=np.int32)]
        rejections: list[BadRecord] = []
        for document in documents:
            try:
                rows.append(self._encoded_or_rejected([document.text]).tokens)
                kept.append(document)
            except RejectedRecordError as error:
                rejections.append(BadRecord(document.line_number, error.reason, error.detail))
        lengths = np.fromiter(map(len, rows[1:]), dtype=np.int64, count=len(kept))
        return kept, Ragged(np.concatenate(rows), lengths), rejections

    def _check_sample(self, batch: LineBatch, documents: Sequence[_Document], encoded: Ragged) -> None:
        if self._reference is None:
            return
        ends = np.cumsum(encoded.lengths)
        for number, document in enumerate(documents):
            if document.record < batch.all_checked or document.record % self._settings.check_interval == 0:
                tokens = encoded.tokens[ends[number] - encoded.lengths[number] : ends[number]]
                self._check(f"{batch.file}:{document.line_number}", document.text, tokens)

    def _check(self, place: str, text: str, tokens: npt.NDArray[np.int32]) -> None:
        assert self._reference is not None
        try:
            check_against_reference(self._encoder, self._reference, text, tokens)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
