"""The operation `chat_encode`: records of dialogues to tokens, targets, and an index of them."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.chat.chatml import ChatML
from data_tools.chat.formats import Reading
from data_tools.chat.rendered import Rendered
from data_tools.chat.samples import Sample, Sampler
from data_tools.corpus.shuffle import document_keys
from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange
from data_tools.readers.files import check_unchanged
from data_tools.readers.jsonl import RejectedRecordError
from data_tools.readers.objects import read_objects
from data_tools.readers.record import BadRecord, RangeCount
from data_tools.tokenizer.qwen import IM_END, IM_START, QwenTokenizer

# One a sample: its place in the shuffle, and the tokens of its document or of chosen and rejected (else 0).
ENTRY = np.dtype([("key", "<u8"), ("first", "<i4"), ("second", "<i4")])
TOKENS, TARGETS, INDEX = "tokens", "targets", "index"


@lru_cache(maxsize=1)
def qwen_chatml() -> ChatML:
    """ChatML in Qwen's vocabulary, kept from task to task."""
    return ChatML(QwenTokenizer().encode, IM_START, IM_END)


def encode_part(task: Task) -> TaskResult:
    """The operation `chat_encode`: files, or a range of one, to NAME.tokens, .targets, .index and .bad.jsonl.

    The options are kind, format, system, labels, max_tokens, max_document_bytes, seed, shuffle, array (whether the
    inputs are JSON arrays) and files: the numbers of the inputs among all files.
    """
    options = task.options
    reading = Reading(kind=options["kind"], record_format=options["format"], system=options["system"])
    sampler = Sampler(
        reading=reading, vocabulary=qwen_chatml(), labels=options["labels"], max_tokens=options["max_tokens"]
    )
    rejected: Counter[str] = Counter()
    num_lines: list[int] = []
    num_truncated = 0
    bad_name = f"{task.name}.bad.jsonl"
    with atomic_output(Path(task.folder, bad_name), sync=False) as bad, _Output(task) as output:
        for number, (part, file_number) in enumerate(zip(task.inputs, options["files"], strict=True)):
            count = RangeCount()
            places: list[int] = []
            for place, line, sample in _samples(part, sampler, options["max_document_bytes"], count, options["array"]):
                if isinstance(sample, Sample):
                    places.append(place)
                    output.add(sample)
                    num_truncated += sample.is_truncated
                else:
                    rejected[sample.reason] += 1
                    entry = [number, line, sample.reason, str(sample)]
                    bad.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            output.end_file(options["seed"] if options["shuffle"] else None, file_number, places)
            num_lines.append(count.lines)
            check_unchanged(part)
    return TaskResult(
        outputs=[bad_name, *output.digests],
        records_in=output.num_samples + rejected.total(),
        records_out=output.num_samples,
        rejected=rejected,
        values={"lines": num_lines, "tokens": output.num_tokens, "truncated": num_truncated},
        digests=output.digests,
    )


def _samples(
    part: FileRange, sampler: Sampler, max_document_bytes: int, count: RangeCount, array: bool
) -> Iterator[tuple[int, int, Sample | RejectedRecordError]]:
    """Place, line and sample of every record, or why there is none."""
    for one in read_objects(part, max_document_bytes, count, array=array):
        if isinstance(one, BadRecord):
            yield 0, one.line, RejectedRecordError(one.reason, one.detail)
            continue
        for sample in sampler.samples(one.record):
            yield one.place, one.line, sample


class _Output:
    """The files of a task as they grow.

    Attributes:
        digests: file -> size and SHA-256; filled at the end.
        num_samples, num_tokens: written so far.
    """

    def __init__(self, task: Task) -> None:
        self._folder, self._name = Path(task.folder), task.name
        self._stack = ExitStack()
        self._streams: dict[str, BinaryIO] = {}
        self._hashes = {suffix: hashlib.sha256() for suffix in (TOKENS, TARGETS, INDEX)}
        self._sizes = dict.fromkeys(self._hashes, 0)
        self._lengths: list[tuple[int, int]] = []  # of the file at hand
        self.digests: dict[str, tuple[int, str]] = {}
        self.num_samples = self.num_tokens = 0

    def __enter__(self) -> "_Output":
        for suffix in self._hashes:
            path = self._folder / f"{self._name}.{suffix}"
            self._streams[suffix] = self._stack.enter_context(atomic_output(path, sync=False))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]
        self.digests = {
            f"{self._name}.{suffix}": (self._sizes[suffix], one.hexdigest()) for suffix, one in self._hashes.items()
        }

    def add(self, sample: Sample) -> None:
        """Appends the documents of a sample."""
        first, *others = sample.documents
        self._lengths.append((len(first), len(others[0]) if others else 0))
        for document in sample.documents:
            self._append(TOKENS, document.tokens.astype(TOKEN_DTYPE).tobytes())
            self._append(TARGETS, document.targets.astype(np.uint8).tobytes())
            self.num_tokens += len(document)

    def end_file(self, seed: int | None, file_number: int, places: list[int]) -> None:
        """Appends to the index what was added since the file before.

        Args:
            seed: of the shuffle; None for none.
            file_number: of the file among all.
            places: of the samples in it.
        """
        entries = np.zeros(len(places), dtype=ENTRY)
        if seed is not None:
            entries["key"] = document_keys(seed, file_number, np.array(places, dtype=np.uint64))
        if places:
            entries["first"], entries["second"] = np.array(self._lengths, dtype=np.int32).T
        self._append(INDEX, entries.tobytes())
        self.num_samples += len(places)
        self._lengths = []

    def _append(self, suffix: str, content: bytes) -> None:
        self._streams[suffix].write(content)
        self._hashes[suffix].update(content)
        self._sizes[suffix] += len(content)


class EncodedParts:
    """What tasks wrote, read in the order of the corpus.

    Attributes:
        num_tokens: of all documents.
    """

    def __init__(self, parts: list[Manifest]) -> None:
        self._parts = [part for part in parts if part.values["tokens"]]
        self.num_tokens = sum(part.values["tokens"] for part in parts)

    def documents(self) -> Iterator[Rendered]:
        """The documents of all samples by the key of the sample, equal keys in the order of the input."""
        if not self._parts:
            return
        entries = [np.fromfile(part.path(f"{part.name}.{INDEX}"), dtype=ENTRY) for part in self._parts]
        tokens = [np.memmap(part.path(f"{part.name}.{TOKENS}"), dtype=TOKEN_DTYPE, mode="r") for part in self._parts]
        flags = [np.memmap(part.path(f"{part.name}.{TARGETS}"), dtype=np.uint8, mode="r") for part in self._parts]
        owner = np.repeat(np.arange(len(entries)), [len(one) for one in entries])
        starts = np.concatenate([_starts(one) for one in entries])
        whole = np.concatenate(entries)
        for sample in np.argsort(whole["key"], kind="stable").tolist():
            part, start = int(owner[sample]), int(starts[sample])
            for length in (int(whole["first"][sample]), int(whole["second"][sample])):
                if length:
                    piece = slice(start, start + length)
                    yield Rendered(tokens=np.array(tokens[part][piece]), targets=flags[part][piece].astype(np.bool_))
                start += length


def _starts(entries: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    sizes = entries["first"].astype(np.int64) + entries["second"]
    return np.cumsum(sizes) - sizes
