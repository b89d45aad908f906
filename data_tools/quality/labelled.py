"""Labelled texts out of files, bad records counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.io.progress import Progress
from data_tools.readers.inputs import Reject, read_records
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES, Rejection
from data_tools.readers.record import BadRecord, ReadOptions

_LABELS = {"1": True, "true": True, "positive": True, "0": False, "false": False, "negative": False}


@dataclass(frozen=True, kw_only=True)
class LabelledInput:
    """Files of one label, or with a label in each record.

    Attributes:
        path: file, folder, pattern or URL.
        label: of all records; None if each has its own.
    """

    path: str
    label: bool | None


def label_of(value: Any) -> bool | None:
    """True for true, 1, "1", "true" and "positive", False for their opposites, None for everything else."""
    return _LABELS.get(str(value).lower()) if isinstance(value, bool | int | str) else None


def read_labelled(
    inputs: Sequence[LabelledInput],
    reject: Reject,
    *,
    text_key: str = "text",
    label_key: str = "label",
    progress: Progress | None = None,
) -> Iterator[tuple[str, bool]]:
    """Texts with labels.

    Args:
        inputs: in any order.
        reject: is given every record that has no text or no label.
        text_key: key of the text.
        label_key: key of the label of inputs without one.
        progress: is told roughly how many bytes of the files are done.
    Raises:
        DataError: a file cannot be found or opened.
    """
    for one in inputs:
        options = ReadOptions(
            text_key=text_key,
            keep=(label_key,) if one.label is None else (),
            max_document_bytes=MAX_DOCUMENT_BYTES,
        )
        for path, record in read_records(one.path, options, progress):
            if isinstance(record, BadRecord):
                reject(Rejection(path, record.line, record.reason, record.detail))
                continue
            label = label_of(record.fields.get(label_key)) if one.label is None else one.label
            if label is None:
                found = repr(record.fields[label_key])[:60] if label_key in record.fields else "not there"
                detail = f"{label_key!r} is {found}; it must be 1 or 0, true or false, positive or negative"
                reject(Rejection(path, record.line, "bad_label", detail))
                continue
            yield record.text, label
