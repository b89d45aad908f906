"""The first stage: files of any format to shards of documents, with bad records listed as file:line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import orjson

from data_tools.engine.document import Document, ShardWriter
from data_tools.engine.planning import SPLIT_BYTES, plan_parts
from data_tools.engine.quarantine import write_quarantine
from data_tools.engine.runner import Runner
from data_tools.engine.task import QUARANTINE_FILE, Manifest, Task, TaskResult
from data_tools.errors import RefusedError
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import PLAIN_NAME_RULE, is_plain_name
from data_tools.readers.files import check_unchanged, find_files
from data_tools.readers.formats import format_of, reader_of
from data_tools.readers.record import LINE, BadRecord, RangeCount, ReadOptions
from data_tools.settings.records import Count, Rule, record

_MAX_LISTED_EXAMPLES = 3
# Stages hold a document whole, several times over and with up to four bytes a character: a worker stays below 1 GiB.
_MAX_DOCUMENT_BYTES = 64 * 1024 * 1024


@record
class DataSet:
    """One entry of `inputs`."""

    path: str
    """File, folder, glob pattern or fsspec URL."""
    source: Annotated[str, Rule(is_plain_name, PLAIN_NAME_RULE)]
    """Name of the data set in all counts, and of its corpus."""
    format: Literal["auto", "jsonl", "parquet", "warc", "text"] = "auto"
    """Of the files; "auto" goes by the file name."""
    text_key: str = "text"
    """Key or column of the text."""
    keep: tuple[str, ...] = ()
    """Other keys to carry along."""
    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """What takes text out of HTML (warc)."""


@record
class ReadStage:
    """Options of the stage `read`."""

    inputs: tuple[DataSet, ...]
    """Data sets, read in this order."""
    split_bytes: Count = SPLIT_BYTES
    """Size of a part."""
    max_document_bytes: Count = _MAX_DOCUMENT_BYTES
    """A longer record is rejected."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Reads everything and writes the list of bad records."""
        del inputs  # The first stage: its inputs are files.
        tasks: list[Task] = []
        for data_set in self.inputs:
            by_format: dict[str, list[FileRange]] = {}
            for file in find_files(data_set.path):
                file_format = format_of(file.path) if data_set.format == "auto" else data_set.format
                by_format.setdefault(file_format, []).append(file)
            for file_format, files in by_format.items():
                options = {
                    "source": data_set.source,
                    "format": file_format,
                    "text_key": data_set.text_key,
                    "keep": list(data_set.keep),
                    "extractor": data_set.extractor,
                    "max_document_bytes": self.max_document_bytes,
                }
                for part in plan_parts(files, file_format, self.split_bytes):
                    name = f"part-{len(tasks):06d}"
                    tasks.append(
                        Task(operation="read", folder=str(folder), name=name, options=options, inputs=(*part,))
                    )
        _refuse_files_read_twice(tasks)
        manifests = runner.run(folder, tasks)
        write_quarantine(folder / QUARANTINE_FILE, manifests)
        return manifests


def _refuse_files_read_twice(tasks: Sequence[Task]) -> None:
    seen: set[tuple[str, int]] = set()
    for task in tasks:
        for one in task.inputs:
            if (one.path, one.start) in seen:
                raise RefusedError(f"{one.path}: named by two of the inputs; every file is read once")
            seen.add((one.path, one.start))


def read_part(task: Task) -> TaskResult:
    """The operation `read`: records of a few files or of a range of one; `note_lines` keeps the line of each."""
    options = task.options
    reader = reader_of(options["format"])
    read_options = ReadOptions(
        text_key=options["text_key"],
        keep=tuple(options["keep"]),
        max_document_bytes=options["max_document_bytes"],
        extractor=options["extractor"],
    )
    folder = Path(task.folder)
    bad_name = f"{task.name}.bad.jsonl"
    counts: list[int] = []
    with (
        atomic_output(folder / bad_name, sync=False) as bad_stream,
        ShardWriter(folder, task.name, keep_dropped=False) as writer,
    ):
        for number, part in enumerate(task.inputs):
            count = RangeCount()
            for record in reader(part, read_options, count):
                if isinstance(record, BadRecord):
                    writer.rejected[record.reason] += 1
                    writer.statistics.add_dropped(record.reason, options["source"])
                    entry = [number, record.line, record.reason, record.detail]
                    bad_stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
                    listed = writer.examples.setdefault(record.reason, [])
                    if len(listed) < _MAX_LISTED_EXAMPLES:
                        listed.append({"id": part.path, "detail": record.detail, "text": ""})
                    continue
                fields = dict(record.fields)
                if options.get("note_lines"):
                    fields[LINE] = record.line
                writer.keep(Document(f"{part.path}@{record.place}", options["source"], record.text, "", fields))
            counts.append(count.lines)
            check_unchanged(part)
    return writer.result(writer.records_out + writer.rejected.total(), bad_name, values={"lines": counts})
