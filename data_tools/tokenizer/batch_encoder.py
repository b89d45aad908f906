"""Lines to token ids: short ones a block at a time, a very long one in pieces.

Plain records go from bytes to ids in the kernel. All others, and those that the reference encodes, are parsed,
normalised and encoded one by one, which says what becomes of any line; the kernel does nothing else, only faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.errors import DataError
from data_tools.readers.jsonl import Line, RejectedRecordError, parse_text
from data_tools.readers.line_blocks import LineBlock, line_of, lines_of
from data_tools.readers.record import BadRecord
from data_tools.tokenizer.encoder import (
    ENCODERS,
    Encoder,
    NativeEncoder,
    Ragged,
    TiktokenEncoder,
    check_against_reference,
)
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
        max_line_bytes: a longer line is rejected.
    """

    text_key: str
    encoder: str
    check_interval: int
    max_line_bytes: int


class Place(NamedTuple):
    """Where lines stand.

    Attributes:
        file: name of their file, for messages.
        skipped_lines: what to take from the number of a line to have that in the file.
        first_record: number of the first line that is not blank, as sampling counts.
        all_checked: how many records from number 0 on are all compared with the reference encoder.
    """

    file: str
    skipped_lines: int
    first_record: int
    all_checked: int


class Sample(NamedTuple):
    """A document that is to be compared with the reference."""

    line: int
    text: str  # NFC
    tokens: npt.NDArray[np.int32]


class EncodedBatch(NamedTuple):
    """The documents of a batch, and the lines that gave none."""

    tokens: npt.NDArray[np.int32]  # of all documents, one after the other, without end-of-document tokens
    lengths: npt.NDArray[np.int32]  # [documents] tokens
    offsets: npt.NDArray[np.uint64]  # [documents] of their lines
    rejections: list[BadRecord]
    num_records: int  # lines that are not blank
    samples: list[Sample]


class _Document(NamedTuple):
    line_number: int
    offset: int
    record: int  # as sampling counts
    text: str  # NFC


class BatchEncoder:
    """Parses, normalises and encodes lines, and compares a sample with the reference encoder."""

    def __init__(self, settings: EncodingSettings) -> None:
        self._settings = settings
        self._reference: Encoder | None = None if settings.encoder == "tiktoken" else TiktokenEncoder()
        self._encoder: Encoder = ENCODERS[settings.encoder]()

    def encode_block(self, block: LineBlock, place: Place) -> EncodedBatch:
        """The documents of whole lines; samples of them are for `check`."""
        if not isinstance(self._encoder, NativeEncoder):
            return self.encode_lines(list(lines_of(block, self._settings.max_line_bytes)), place)
        max_line_bytes = self._settings.max_line_bytes
        plain = self._encoder.kernel.encode_lines(
            block.content, self._settings.text_key, block.number == 1, max_line_bytes
        )
        offsets = plain.starts.astype(np.uint64) + np.uint64(block.offset)
        samples = self._samples(block, place, plain)
        if not plain.odd:
            return EncodedBatch(plain.tokens, plain.lengths, offsets, [], plain.num_records, samples)
        lines = [line_of(block, line, start, stop, max_line_bytes) for _, line, start, stop in plain.odd]
        others = self.encode_lines(lines, place, [record for record, _, _, _ in plain.odd])
        return EncodedBatch(
            tokens=np.concatenate((plain.tokens, others.tokens)),
            lengths=np.concatenate((plain.lengths, others.lengths)),
            offsets=np.concatenate((offsets, others.offsets)),
            rejections=others.rejections,
            num_records=plain.num_records,
            samples=samples + others.samples,
        )

    def encode_lines(self, lines: list[Line], place: Place, records: Sequence[int] | None = None) -> EncodedBatch:
        """The documents of lines that are not blank, in order.

        Args:
            lines: are used up, so that a long text is not in memory twice.
            place: where they stand.
            records: number of each from ``place.first_record`` on; None: one after the other.
        """
        num_records = len(lines)
        documents, rejections = self._parse(lines, place, range(num_records) if records is None else records)
        try:
            encoded = self._encoder.encode_batch([document.text for document in documents])
        except DataError:
            documents, encoded, unencodable = self._encode_one_by_one(documents)
            rejections = sorted([*rejections, *unencodable], key=lambda rejection: rejection.line)
        ends = np.cumsum(encoded.lengths)
        samples = [
            Sample(document.line_number, document.text, encoded.tokens[end - length : end].copy())
            for document, end, length in zip(documents, ends, encoded.lengths, strict=True)
            if self._is_checked(place, document.record)
        ]
        offsets = (document.offset for document in documents)
        return EncodedBatch(
            tokens=encoded.tokens,
            lengths=encoded.lengths.astype(np.int32),
            offsets=np.fromiter(offsets, dtype=np.uint64, count=len(documents)),
            rejections=rejections,
            num_records=num_records,
            samples=samples,
        )

    def check(self, place: Place, samples: Sequence[Sample]) -> None:
        """Compares samples with what the reference makes of their texts.

        Raises:
            DataError: they differ; names file and line.
        """
        for line, text, tokens in samples:
            self._check(place, line, text, tokens)

    def encode_long(self, line: Line, place: Place) -> Iterator[npt.NDArray[np.int32]]:
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
                    self._check(place, line.number, group[0], encoded.tokens[: encoded.lengths[0]])
                    checked = True
                yield encoded.tokens
        except UncuttableTextError as error:
            raise RejectedRecordError("not_encodable", str(error)) from error

    def _encoded_or_rejected(self, texts: Sequence[str]) -> Ragged:
        try:
            return self._encoder.encode_batch(texts)
        except DataError as error:
            raise RejectedRecordError("not_encodable", str(error)) from error

    def _parse(
        self, lines: list[Line], place: Place, records: Sequence[int]
    ) -> tuple[list[_Document], list[BadRecord]]:
        documents: list[_Document] = []
        rejections: list[BadRecord] = []
        lines.reverse()
        for record in records:
            line = lines.pop()
            try:
                text = parse_text(line, self._settings.text_key)
                documents.append(_Document(line.number, line.offset, place.first_record + record, text))
            except RejectedRecordError as error:
                rejections.append(BadRecord(line.number, error.reason, error.detail))
        return documents, rejections

    def _encode_one_by_one(self, documents: Sequence[_Document]) -> tuple[list[_Document], Ragged, list[BadRecord]]:
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

    def _samples(self, block: LineBlock, place: Place, plain: _native.EncodedLines) -> list[Sample]:
        """Some of what the kernel made of lines, with the texts that the parser finds in them."""
        records = plain.records + place.first_record
        checked = np.flatnonzero((records < place.all_checked) | (records % self._settings.check_interval == 0))
        if self._reference is None or not len(checked):
            return []
        samples = []
        starts, lines, ends = plain.starts, plain.lines, np.cumsum(plain.lengths)
        for number in checked.tolist():
            start = int(starts[number])
            stop = block.content.find(b"\n", start)
            stop = len(block.content) if stop < 0 else stop
            line = line_of(block, int(lines[number]), start, stop, self._settings.max_line_bytes)
            ids = plain.tokens[ends[number] - plain.lengths[number] : ends[number]].copy()
            samples.append(Sample(line.number, parse_text(line, self._settings.text_key), ids))
        return samples

    def _is_checked(self, place: Place, record: int) -> bool:
        is_sampled = record < place.all_checked or record % self._settings.check_interval == 0
        return is_sampled and self._reference is not None

    def _check(self, place: Place, line: int, text: str, tokens: npt.NDArray[np.int32]) -> None:
        assert self._reference is not None
        try:
            check_against_reference(self._encoder, self._reference, text, tokens)
        except DataError as error:
            raise DataError(f"{place.file}:{line - place.skipped_lines}: {error}") from error
