"""Files of text to a corpus: the tasks of the pipeline's stages `read` and `tokenize`, on files of the user's.

What is done is kept in a folder .NAME.work beside the corpus until the corpus is complete, so that a run that was
killed goes on from there. Memory does not grow with the text or with its longest line.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.rejections import publish_list, rejected_path
from data_tools.corpus.sidecar import InputFile, Sidecar
from data_tools.corpus.writer import prepare_place, require_absent
from data_tools.engine.executor import Executor, InProcessExecutor, ProcessExecutor
from data_tools.engine.planning import plan_parts
from data_tools.engine.quarantine import write_quarantine
from data_tools.engine.runner import Runner
from data_tools.engine.task import QUARANTINE_FILE, Manifest, Task
from data_tools.engine.thread_executor import ThreadExecutor
from data_tools.errors import DataError, PathError, RefusedError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import remove_tree
from data_tools.readers.files import check_unchanged
from data_tools.readers.jsonl import LARGEST_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES
from data_tools.stages.tokenize_encode import NUM_FIRST_CHECKED
from data_tools.stages.tokenize_gather import gather_runs
from data_tools.stages.tokenize_inputs import (
    JSONL,
    EncodeInput,
    Segment,
    encode_inputs,
    find_segments,
    read_tasks,
)
from data_tools.stages.tokenize_rejections import RejectionPlaces
from data_tools.stages.tokenize_runs import TOKENS_IN_MEMORY, RunSizes
from data_tools.stages.tokenize_seal import seal
from data_tools.stages.user_files import content_of, require_own_work
from data_tools.tokenizer.encoder import ENCODERS

_PUBLISHING = "publishing"
FORMATS = ("auto", "jsonl", "parquet", "warc", "text")
# What a folder .NAME.work holds; checksums are of earlier versions.
_OWN_WORK = re.compile(
    r"read|runs|buckets|checksums|(?:runs\.json|publishing|rejected\.jsonl)|\.(?:runs\.json|publishing|rejected\.jsonl)\..{8}\.tmp"
    r"|tokens-[0-9a-f]{64}\.bin"
)


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How to tokenize.

    Attributes:
        text_key: key of the text in each record, or its column.
        file_format: "jsonl", "parquet", "warc", "text" (one document a file), or "auto", which goes by the name.
        seed: of the document order, 0 to 2^64 - 1.
        shuffle: False keeps the order of the input.
        workers: threads of this process; for reading what is no JSON Lines, and with the reference encoder,
            processes if there is more than one.
        encoder: "native" (fast) or "tiktoken" (reference).
        check_interval: one record in this many is compared with tiktoken, and the first 64.
        max_document_bytes: a longer line is rejected.
        overwrite: replace a corpus that is there.
        rejected: where rejected records are listed; None: PREFIX.rejected.jsonl.
        tokens_in_memory: most tokens of a run and of a bucket, 4 bytes of memory each; small inputs take less.
    """

    text_key: str = "text"
    file_format: str = "auto"
    seed: int = 1234
    shuffle: bool = True
    workers: int = 1
    encoder: str = "native"
    check_interval: int = 1000
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    overwrite: bool = False
    rejected: Path | None = None
    tokens_in_memory: int = TOKENS_IN_MEMORY

    def __post_init__(self) -> None:
        """Raises DataError naming the first option that is out of range."""
        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed={self.seed} is out of range, use 0 to 2^64 - 1")
        if self.workers < 1:
            raise DataError(f"workers={self.workers} must be at least 1")
        if self.tokens_in_memory < 1:
            raise DataError(f"tokens_in_memory={self.tokens_in_memory} must be at least 1")
        if self.check_interval < 1:
            raise DataError(f"check_interval={self.check_interval} must be at least 1")
        if not 1 <= self.max_document_bytes <= LARGEST_DOCUMENT_BYTES:
            raise DataError(
                f"max_document_bytes={self.max_document_bytes} must be 1 to {LARGEST_DOCUMENT_BYTES} (512 MiB)"
            )
        if self.file_format not in FORMATS:
            raise DataError(f"file_format={self.file_format!r} is unknown, use one of {', '.join(FORMATS)}")
        if self.encoder not in ENCODERS:
            raise DataError(f"encoder={self.encoder!r} is unknown, use one of {', '.join(ENCODERS)}")


def tokenize(inputs: Sequence[str | Path], prefix: str | Path, options: TokenizeOptions | None = None) -> Sidecar:
    """Makes the corpus PREFIX.bin, .idx, .crc, .json from files of text.

    Every document is its text in NFC encoded as ordinary text, then END_OF_DOCUMENT. Records that give no document are
    counted by reason in the sidecar and listed by file and line in PREFIX.rejected.jsonl. The same inputs and seed give
    the same bytes, whatever the number of workers.

    Args:
        inputs: files, folders, patterns and URLs of any format that pipelines read, in the order that numbers the
            documents.
        prefix: path of the corpus without suffix; its folder is created if need be.
        options: how; the defaults if None.
    Raises:
        DataError: an input cannot be read, the corpus exists, another process is writing it, no record gave a
            document, or the fast encoder differs from the reference.
        OSError: the disk is full or fails.
    In either case, and after a kill or an interrupt, the parts that are finished stay in PREFIX's folder as .NAME.work,
    if there are any; the same call goes on from them.
    """
    options = options or TokenizeOptions()
    if not inputs:
        raise DataError("no input files; name at least one")
    prepare_place(prefix)
    if options.rejected is not None and not options.rejected.absolute().parent.is_dir():
        raise RefusedError(f"{options.rejected}: its folder does not exist; create it or name another file")
    if options.rejected is not None and options.rejected.is_dir():
        raise RefusedError(f"{options.rejected}: is a folder; name a file")
    segments = find_segments(inputs, options.file_format)
    with corpus_lock(prefix):
        return _tokenize(segments, Path(prefix), options)


@dataclass(frozen=True)
class _Plan:
    """What is known before anything is read.

    Attributes:
        segments: the files of the user's.
        reading: for each segment the tasks that make JSON Lines of it.
        sizes: of runs, buckets and parts.
        key: hash of everything that the corpus depends on.
    """

    segments: Sequence[Segment]
    reading: Sequence[Sequence[Task]]
    sizes: RunSizes
    key: bytes

    @property
    def files(self) -> list[FileRange]:
        return [file for segment in self.segments for file in segment.files]


def _plan(segments: Sequence[Segment], work: Path, options: TokenizeOptions) -> _Plan:
    total = sum(file.size_bytes for segment in segments for file in segment.files)
    sizes = RunSizes.of(total, options.tokens_in_memory)
    reading = read_tasks(work / "read", segments, sizes.part_bytes, options.text_key, options.max_document_bytes)
    # As if everything were JSON Lines: the key depends on all files and options then.
    largest = options.max_document_bytes
    files = [EncodeInput(file, options.text_key, largest) for segment in segments for file in segment.files]
    tasks = [*(task for some in reading for task in some), *_encode_tasks(work / "runs", [files], sizes, options)]
    key = hashlib.sha256("".join(task.key() for task in tasks).encode()).hexdigest().encode()
    return _Plan(segments, reading, sizes, key)


def _tokenize(segments: Sequence[Segment], prefix: Path, options: TokenizeOptions) -> Sidecar:
    work = prefix.parent / f".{prefix.name}.work"
    require_own_work(work, _OWN_WORK, "qwen-data tokenize")
    plan = _plan(segments, work, options)
    # Killed while it gave its files their names: they are not somebody else's.
    was_publishing = content_of(work / _PUBLISHING) == plan.key
    require_absent(prefix, overwrite=options.overwrite or was_publishing)
    try:
        read = _read(work, plan, options.workers)
        with contextlib.closing(_encoding_executor(options)) as executor:
            sidecar = _run(Runner(executor, root=work), work, plan, read, prefix, options)
    except BaseException:
        if not any(work.glob("*/*.manifest.json")):
            # Nothing to go on from; what went wrong is worth more than what is left.
            with contextlib.suppress(OSError, PathError):
                remove_tree(work, prefix.parent)
        raise
    remove_tree(work, prefix.parent)
    return sidecar


def _encoding_executor(options: TokenizeOptions) -> Executor:
    return ThreadExecutor(options.workers) if options.encoder == "native" else _processes(options.workers)


def _processes(workers: int) -> Executor:
    return InProcessExecutor() if workers == 1 else ProcessExecutor(workers)


def _run(
    runner: Runner, work: Path, plan: _Plan, read: Sequence[Sequence[Manifest]], prefix: Path, options: TokenizeOptions
) -> Sidecar:
    inputs = [
        encode_inputs(segment, manifests, options.text_key, options.max_document_bytes)
        for segment, manifests in zip(plan.segments, read, strict=True)
    ]
    runner.title = "tokenizing"
    encoded = runner.run(work / "runs", _encode_tasks(work / "runs", inputs, plan.sizes, options))
    for file in plan.files:
        check_unchanged(file)
    done = [*(manifest for some in read for manifest in some), *encoded]
    rejected: Counter[str] = Counter()
    for manifest in done:
        rejected.update(manifest.rejected)
    list_path = options.rejected or rejected_path(prefix)
    places = RejectionPlaces([manifest for some in read for manifest in some], encoded)
    write_quarantine(work / QUARANTINE_FILE, done, places.rows)
    publish_list(work / QUARANTINE_FILE, list_path)
    if not any(manifest.records_out for manifest in encoded):
        remove_tree(work, prefix.parent)
        raise DataError(_no_documents(plan.files, rejected, list_path))
    runner.title = "shuffling"
    target, gathered = gather_runs(runner, work, encoded, plan.sizes, shuffle=options.shuffle)
    seed = options.seed if options.shuffle else None
    write_atomically(work / _PUBLISHING, plan.key)
    input_files = [InputFile(path=file.path, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns) for file in plan.files]
    return seal(prefix, target, gathered, rejected, input_files, seed)


def _read(work: Path, plan: _Plan, workers: int) -> list[list[Manifest]]:
    """Makes JSON Lines of what is none, in processes, for readers hold the interpreter's lock.

    Returns:
        The manifests of each segment.
    """
    tasks = [task for some in plan.reading for task in some]
    if not tasks:
        return [[] for _ in plan.segments]
    with contextlib.closing(_processes(workers)) as executor:
        runner = Runner(executor, root=work)
        runner.title = "reading"
        manifests = iter(runner.run(work / "read", tasks))
    return [[next(manifests) for _ in some] for some in plan.reading]


def _encode_tasks(
    folder: Path, segments: Sequence[Sequence[EncodeInput]], sizes: RunSizes, options: TokenizeOptions
) -> list[Task]:
    """Ranges of large plain files, and small files put together; the cut does not depend on the workers."""
    tasks: list[Task] = []
    file_number = -1
    for inputs in segments:
        by_path = {one.file.path: one for one in inputs}
        for part in plan_parts([one.file for one in inputs], JSONL, sizes.part_bytes):
            numbers = []
            for one in part:
                file_number += one.start == 0
                numbers.append(file_number)
            task_options = {
                "text_key": by_path[part[0].path].text_key,
                "encoder": options.encoder,
                "check_interval": options.check_interval,
                "all_checked": 0 if tasks else NUM_FIRST_CHECKED,
                "max_line_bytes": by_path[part[0].path].max_line_bytes,
                "files": numbers,
                "seed": options.seed,
                "shuffle": options.shuffle,
                "run_tokens": sizes.run_tokens,
                "num_ranges": sizes.num_ranges,
            }
            name = f"part-{len(tasks):06d}"
            tasks.append(
                Task(operation="tokenize_encode", folder=str(folder), name=name, options=task_options, inputs=(*part,))
            )
    return tasks


def _no_documents(files: Sequence[FileRange], rejected: Counter[str], list_path: Path) -> str:
    names = ", ".join(file.path for file in files[:3]) + (", ..." if len(files) > 3 else "")
    if not rejected:
        return f"{names}: no records; the input is empty"
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    hint, reason = "", rejected.most_common(1)[0][0]
    if rejected["missing_text"] or rejected["text_not_string"]:
        # The keys that records have say more than the first bad line.
        reason = "missing_text" if rejected["missing_text"] else "text_not_string"
        hint = "; --text-key names the key of the text"
    elif rejected["not_json"] or rejected["invalid_utf8"]:
        hint = "; --format says what the files are, if they are no JSON Lines"
    with list_path.open("rb") as lines:
        first = next(entry for entry in map(orjson.loads, lines) if entry["reason"] == reason)
    return (
        f"{names}: none of {rejected.total()} records gave a document ({reasons}); {list_path} lists them, such as "
        f"line {first['line']}, {first['reason']}, {first['detail']}{hint}"
    )
