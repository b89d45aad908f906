"""Files of dialogues, pairs or prompts to a corpus of them.

What is done is kept in a folder .NAME.chat-work beside the corpus until the corpus is complete, so that a run that was
killed goes on from there: encoding is what takes time, and its parts are kept; the corpus itself is written whole.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.chat.chat_corpus import targets_prefix
from data_tools.chat.chat_writer import Origin, write_locked
from data_tools.chat.formats import FORMATS
from data_tools.chat.rendering import ASSISTANT_LABELS, LABELS
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.rejections import publish_list, rejected_path
from data_tools.corpus.sidecar import CHAT_KINDS, DIALOGUES, ChatContent, InputFile, Sidecar
from data_tools.corpus.writer import prepare_place, require_absent
from data_tools.engine.executor import InProcessExecutor, ProcessExecutor
from data_tools.engine.planning import plan_parts
from data_tools.engine.quarantine import write_quarantine
from data_tools.engine.runner import Runner
from data_tools.engine.task import QUARANTINE_FILE, Manifest, Task
from data_tools.errors import DataError, PathError, RefusedError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import remove_tree
from data_tools.io.progress import progress_bar
from data_tools.readers.objects import is_array
from data_tools.stages.chat_encode import EncodedParts
from data_tools.stages.user_files import content_of, input_file, refuse_files_named_twice, require_own_work
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, FINGERPRINT, IM_END

# A few seconds of encoding.
_PART_BYTES = 8 * 1024 * 1024
_PUBLISHING = "publishing"
_OTHER_INPUTS = "name files of JSON Lines or JSON arrays"
# What a folder .NAME.chat-work holds.
_OWN_WORK = re.compile(
    r"parts|(?:publishing|rejected\.jsonl)|\.(?:publishing|rejected\.jsonl)\..{8}\.tmp",
)


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How to make a corpus of dialogues.

    Attributes:
        kind: dialogues, pairs or prompts.
        record_format: one of `formats.FORMATS`; None: by each record's keys.
        labels: one of `rendering.LABELS`.
        system: text of a system turn for dialogues without one; None for none.
        max_tokens: of a document.
        seed: of the document order, 0 to 2^64 - 1.
        shuffle: False keeps the order of the input.
        workers: processes that encode; 1 encodes in this process.
        max_document_bytes: a longer line is rejected.
        overwrite: replace a corpus that is there.
        rejected: where rejected records are listed; None: PREFIX.rejected.jsonl.
    """

    kind: str = DIALOGUES
    record_format: str | None = None
    labels: str = ASSISTANT_LABELS
    system: str | None = None
    max_tokens: int = 2048
    seed: int = 1234
    shuffle: bool = True
    workers: int = 1
    max_document_bytes: int = 64 * 1024 * 1024
    overwrite: bool = False
    rejected: Path | None = None

    def __post_init__(self) -> None:
        """Raises DataError naming the first option that is wrong."""
        for name, value, allowed in (
            ("kind", self.kind, CHAT_KINDS),
            ("format", self.record_format or FORMATS[0], FORMATS),
            ("labels", self.labels, LABELS),
        ):
            if value not in allowed:
                raise DataError(f"{name}={value!r:.100}: must be one of {', '.join(allowed)}")
        for name, count in (
            ("max_tokens", self.max_tokens),
            ("workers", self.workers),
            ("max_document_bytes", self.max_document_bytes),
        ):
            if count < 1:
                raise DataError(f"{name}={count} must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed={self.seed} is out of range, use 0 to 2^64 - 1")


def make_chat_corpus(inputs: Sequence[str | Path], prefix: str | Path, options: ChatOptions | None = None) -> Sidecar:
    """Makes the corpora PREFIX and PREFIX.targets from files of dialogues, pairs or prompts.

    Records that give no sample are counted by reason in the sidecar and listed by file and line (of a JSON array the
    number of the record) in PREFIX.rejected.jsonl: those that are wrong, and those that are too long or hold nothing
    to learn. The same inputs and options give the same bytes, whatever the number of workers.

    Args:
        inputs: files, plain or compressed, in the order that numbers the records.
        prefix: path of the corpus without suffix; its folder is created if need be.
        options: how; the defaults if None.
    Raises:
        DataError: an input cannot be read, the corpus exists, another process is writing it, or no record gave a
            sample.
        OSError: the disk is full or fails.
    In either case, and after a kill or an interrupt, the parts that are finished stay in PREFIX's folder as
    .NAME.chat-work, if there are any; the same call goes on from them.
    """
    options = options or ChatOptions()
    if not inputs:
        raise DataError("no input files; name at least one")
    prepare_place(prefix)
    if options.rejected is not None and (options.rejected.is_dir() or not options.rejected.absolute().parent.is_dir()):
        raise RefusedError(f"{options.rejected}: must be a file in a folder that exists")
    files = tuple(input_file(Path(path), _OTHER_INPUTS) for path in inputs)
    refuse_files_named_twice([file.path for file in files])
    with corpus_lock(prefix):
        return _make(files, Path(prefix), options)


def _make(files: tuple[InputFile, ...], prefix: Path, options: ChatOptions) -> Sidecar:
    work = prefix.parent / f".{prefix.name}.chat-work"
    require_own_work(work, _OWN_WORK, "qwen-data chat")
    tasks = list(_tasks(work / "parts", files, options))
    plan = hashlib.sha256("".join(task.key() for task in tasks).encode()).hexdigest().encode()
    # Killed while it gave its files their names: they are not somebody else's.
    was_publishing = content_of(work / _PUBLISHING) == plan
    for one in (prefix, targets_prefix(prefix)):
        require_absent(one, overwrite=options.overwrite or was_publishing)
    executor = InProcessExecutor() if options.workers == 1 else ProcessExecutor(options.workers)
    try:
        try:
            runner = Runner(executor, root=work)
            runner.title = "encoding"
            encoded = runner.run(work / "parts", tasks)
        finally:
            executor.close()
        for file in files:
            if input_file(Path(file.path), _OTHER_INPUTS) != file:
                raise DataError(f"{file.path}: changed while it was read; run again when it is complete")
        listed = options.rejected or rejected_path(prefix)
        write_quarantine(work / QUARANTINE_FILE, encoded)
        publish_list(work / QUARANTINE_FILE, listed)
        origin = _origin(files, encoded, options)
        if not any(part.records_out for part in encoded):
            remove_tree(work, prefix.parent)
            raise DataError(_no_samples(files, origin, listed))
        write_atomically(work / _PUBLISHING, plan)
        sidecar = _write(prefix, encoded, origin, options)
    except BaseException:
        if not any(work.glob("*/*.manifest.json")):
            # Nothing to go on from; what went wrong is worth more than what is left.
            with contextlib.suppress(OSError, PathError):
                remove_tree(work, prefix.parent)
        raise
    remove_tree(work, prefix.parent)
    return sidecar


def _write(prefix: Path, encoded: list[Manifest], origin: Origin, options: ChatOptions) -> Sidecar:
    parts = EncodedParts(encoded)
    content = ChatContent(
        kind=options.kind, labels=options.labels, end_of_turn=IM_END, vocab_size=0, truncated=0, targets=""
    )
    with progress_bar("writing", parts.num_tokens, unit="tokens") as progress:
        return write_locked(prefix, parts.documents(), content, FINGERPRINT, END_OF_DOCUMENT, origin, progress)


def _origin(files: tuple[InputFile, ...], encoded: Sequence[Manifest], options: ChatOptions) -> Origin:
    rejected: Counter[str] = Counter()
    for part in encoded:
        rejected.update(part.rejected)
    return Origin(
        shuffle_seed=options.seed if options.shuffle else None,
        rejected=rejected,
        truncated=sum(part.values["truncated"] for part in encoded),
        inputs=files,
    )


def _tasks(folder: Path, files: Sequence[InputFile], options: ChatOptions) -> Iterator[Task]:
    """Ranges of large plain files, and small files put together; the cut does not depend on the workers."""
    number = 0
    for group in _groups(files):
        array = group[0][1]
        inputs = [FileRange(path=file.path, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns) for _, _, file in group]
        numbers = {file.path: place for place, _, file in group}
        for part in plan_parts(inputs, "json" if array else "jsonl", _PART_BYTES):
            yield Task(
                operation="chat_encode",
                folder=str(folder),
                name=f"part-{number:06d}",
                options={
                    "kind": options.kind,
                    "format": options.record_format,
                    "system": options.system,
                    "labels": options.labels,
                    "max_tokens": options.max_tokens,
                    "max_document_bytes": options.max_document_bytes,
                    "seed": options.seed,
                    "shuffle": options.shuffle,
                    "array": array,
                    "files": [numbers[one.path] for one in part],
                },
                inputs=(*part,),
            )
            number += 1


def _groups(files: Sequence[InputFile]) -> Iterator[list[tuple[int, bool, InputFile]]]:
    """Number, whether it is an array, and name of files in a row that are alike in that."""
    group: list[tuple[int, bool, InputFile]] = []
    for number, file in enumerate(files):
        array = is_array(file.path)
        if group and group[0][1] != array:
            yield group
            group = []
        group.append((number, array, file))
    yield group


def _no_samples(files: Sequence[InputFile], origin: Origin, listed: Path) -> str:
    names = ", ".join(file.path for file in files[:3]) + (", ..." if len(files) > 3 else "")
    total = sum(origin.rejected.values())
    if not total:
        return f"{names}: no records; the input is empty"
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(origin.rejected).most_common())
    return f"{names}: none of {total} records gave a sample ({reasons}); {listed} lists them and says why"
