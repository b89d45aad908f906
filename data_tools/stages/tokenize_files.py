"""JSON Lines to a corpus: the tasks of the pipeline's stage `tokenize`, on files of the user's.

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
from data_tools.engine.task import QUARANTINE_FILE, Task
from data_tools.engine.thread_executor import ThreadExecutor
from data_tools.errors import DataError, PathError, RefusedError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import remove_tree
from data_tools.io.progress import progress_bar
from data_tools.readers.jsonl import LARGEST_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES
from data_tools.stages.tokenize_encode import NUM_FIRST_CHECKED, TOKENS_IN_MEMORY
from data_tools.stages.tokenize_gather import gather_runs
from data_tools.stages.tokenize_seal import seal
from data_tools.stages.user_files import content_of, input_file, refuse_files_named_twice, require_own_work
from data_tools.tokenizer.encoder import ENCODERS

# Parts that the input is cut into: enough to share among many workers, each large enough to be worth a file.
_PARTS = 1024
_SMALLEST_PART_BYTES = 16 * 1024 * 1024
_LARGEST_PART_BYTES = 256 * 1024 * 1024
_PUBLISHING = "publishing"
_OTHER_INPUTS = (
    "this command takes JSON Lines; folders, patterns, plain text, Parquet and WARC are read by `qwen-data stage read "
    "INPUT --output DIR`, whose parts (DIR/stages/01-read/part-*.jsonl.zst) it takes"
)
# What a folder .NAME.work holds.
_OWN_WORK = re.compile(
    r"runs|buckets|(?:runs\.json|publishing|rejected\.jsonl)|\.(?:runs\.json|publishing|rejected\.jsonl)\..{8}\.tmp"
    r"|tokens-[0-9a-f]{64}\.bin"
)


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How to tokenize.

    Attributes:
        text_key: key of the text in each record.
        seed: of the document order, 0 to 2^64 - 1.
        shuffle: False keeps the order of the input.
        workers: threads of this process, or, with the reference encoder, processes if there is more than one.
        encoder: "native" (fast) or "tiktoken" (reference).
        check_interval: one record in this many is compared with tiktoken, and the first 64.
        max_document_bytes: a longer line is rejected.
        overwrite: replace a corpus that is there.
        rejected: where rejected records are listed; None: PREFIX.rejected.jsonl.
    """

    text_key: str = "text"
    seed: int = 1234
    shuffle: bool = True
    workers: int = 1
    encoder: str = "native"
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
        inputs: JSONL files, plain or compressed, in the order that numbers the documents.
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
        raise DataError("no input files; name at least one JSONL file")
    prepare_place(prefix)
    if options.rejected is not None and not options.rejected.absolute().parent.is_dir():
        raise RefusedError(f"{options.rejected}: its folder does not exist; create it or name another file")
    if options.rejected is not None and options.rejected.is_dir():
        raise RefusedError(f"{options.rejected}: is a folder; name a file")
    input_files = tuple(input_file(Path(path), _OTHER_INPUTS) for path in inputs)
    refuse_files_named_twice(input_files)
    with corpus_lock(prefix):
        return _tokenize(input_files, Path(prefix), options)


def _tokenize(input_files: tuple[InputFile, ...], prefix: Path, options: TokenizeOptions) -> Sidecar:
    work = prefix.parent / f".{prefix.name}.work"
    require_own_work(work, _OWN_WORK, "qwen-data tokenize")
    tasks = _encode_tasks(work / "runs", input_files, options)
    # Killed while it gave its files their names: they are not somebody else's.
    was_publishing = content_of(work / _PUBLISHING) == _plan_key(tasks)
    require_absent(prefix, overwrite=options.overwrite or was_publishing)
    executor = _executor(options)
    try:
        try:
            sidecar = _run(Runner(executor, root=work), work, tasks, input_files, prefix, options)
        finally:
            executor.close()
    except BaseException:
        if not any(work.glob("*/*.manifest.json")):
            # Nothing to go on from; what went wrong is worth more than what is left.
            with contextlib.suppress(OSError, PathError):
                remove_tree(work, prefix.parent)
        raise
    remove_tree(work, prefix.parent)
    return sidecar


def _executor(options: TokenizeOptions) -> Executor:
    if options.encoder == "native":
        return ThreadExecutor(options.workers)
    return InProcessExecutor() if options.workers == 1 else ProcessExecutor(options.workers)


def _run(
    runner: Runner,
    work: Path,
    tasks: Sequence[Task],
    input_files: tuple[InputFile, ...],
    prefix: Path,
    options: TokenizeOptions,
) -> Sidecar:
    runner.title = "tokenizing"
    encoded = runner.run(work / "runs", tasks)
    for file in input_files:
        if input_file(Path(file.path), _OTHER_INPUTS) != file:
            raise DataError(f"{file.path}: changed while it was read; tokenize again when it is complete")
    rejected: Counter[str] = Counter()
    for manifest in encoded:
        rejected.update(manifest.rejected)
    list_path = options.rejected or rejected_path(prefix)
    write_quarantine(work / QUARANTINE_FILE, encoded)
    publish_list(work / QUARANTINE_FILE, list_path)
    if not any(manifest.records_out for manifest in encoded):
        remove_tree(work, prefix.parent)
        raise DataError(_no_documents(input_files, rejected, list_path))
    runner.title = "shuffling"
    target, gathered = gather_runs(runner, work, encoded, TOKENS_IN_MEMORY, shuffle=options.shuffle)
    seed = options.seed if options.shuffle else None
    write_atomically(work / _PUBLISHING, _plan_key(tasks))
    with progress_bar("sealing", target.stat().st_size) as progress:
        return seal(prefix, target, gathered, rejected, input_files, seed, progress)


def _encode_tasks(folder: Path, files: Sequence[InputFile], options: TokenizeOptions) -> list[Task]:
    """Ranges of large plain files, and small files put together; the cut does not depend on the workers."""
    total = sum(file.size_bytes for file in files)
    split_bytes = min(max(total // _PARTS, _SMALLEST_PART_BYTES), _LARGEST_PART_BYTES)
    inputs = [FileRange(path=file.path, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns) for file in files]
    tasks: list[Task] = []
    file_number = -1
    for part in plan_parts(inputs, "jsonl", split_bytes):
        numbers = []
        for one in part:
            file_number += one.start == 0
            numbers.append(file_number)
        task_options = {
            "text_key": options.text_key,
            "encoder": options.encoder,
            "check_interval": options.check_interval,
            "all_checked": 0 if tasks else NUM_FIRST_CHECKED,
            "max_line_bytes": options.max_document_bytes,
            "files": numbers,
            "seed": options.seed,
            "shuffle": options.shuffle,
            "run_tokens": TOKENS_IN_MEMORY,
        }
        name = f"part-{len(tasks):06d}"
        tasks.append(
            Task(operation="tokenize_encode", folder=str(folder), name=name, options=task_options, inputs=(*part,))
        )
    return tasks


def _plan_key(tasks: Sequence[Task]) -> bytes:
    return hashlib.sha256("".join(task.key() for task in tasks).encode()).hexdigest().encode()


def _no_documents(inputs: Sequence[InputFile], rejected: Counter[str], list_path: Path) -> str:
    names = ", ".join(file.path for file in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    if not rejected:
        return f"{names}: no records; the input is empty"
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    with list_path.open("rb") as lines:
        first = orjson.loads(lines.readline())
    hint = ""
    if rejected["missing_text"] or rejected["text_not_string"]:
        hint = "; --text-key names the key of the text"
    elif rejected["not_json"] or rejected["invalid_utf8"]:
        hint = f"; {_OTHER_INPUTS}"
    return (
        f"{names}: none of {rejected.total()} records gave a document ({reasons}); {list_path} lists them, the first: "
        f"line {first['line']}, {first['reason']}, {first['detail']}{hint}"
    )
