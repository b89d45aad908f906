"""Documents that hold benchmark items: dropped, or the stretches cut out; every match is reported."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import orjson

from data_tools.decontamination.benchmark_index import BenchmarkIndex, BenchmarkItem, DecontaminationConfig
from data_tools.decontamination.matches import remove_spans, report_line
from data_tools.engine.document import Drop, ShardWriter, batches, read_documents
from data_tools.engine.part_tasks import part_tasks
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange
from data_tools.readers.files import find_files
from data_tools.readers.jsonl_records import read_jsonl
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions
from data_tools.settings.records import Count, NonNegative, record

# Options that are fields of `DecontaminationConfig`.
_SIZES = ("num_words", "min_words", "short_num_words")
_MAX_ITEM_BYTES = 16 * 1024 * 1024


@record
class Benchmark:
    """One entry of `benchmarks`."""

    name: str
    """In the report."""
    path: str
    """JSON Lines files: a path or a pattern."""
    text_key: str = "text"
    """Key of the text of an item; name a benchmark twice for questions and answers."""


@record
class DecontaminateStage:
    """Options of the stage `decontaminate`."""

    benchmarks: tuple[Benchmark, ...]
    """What must not be in the corpus."""
    remove: Literal["document", "span"] = "document"
    """Whether the whole document goes, or the span that was found."""
    margin: NonNegative = 0
    """Characters cut on both sides of a span."""
    num_words: Count = 13
    """Words in an n-gram; a shorter item is found only whole, unless short_num_words says otherwise."""
    min_words: Count = 6
    """Shorter items are not looked for."""
    short_num_words: Count | None = None
    """Words in an n-gram of items shorter than num_words, 8 for instance; null finds them only whole."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """One task for each part; NAME.matches.jsonl lists what was found."""
        sizes = {name: getattr(self, name) for name in _SIZES}
        DecontaminationConfig(**sizes)  # Refuses what does not fit.
        files = [(benchmark, file) for benchmark in self.benchmarks for file in find_files(benchmark.path)]
        options = {
            "benchmarks": [[benchmark.name, benchmark.text_key] for benchmark, _ in files],
            "remove": self.remove,
            "margin": self.margin,
            **sizes,
        }
        items = [file for _, file in files]
        return runner.run(folder, part_tasks("decontaminate", folder, inputs, options, shared=items))


@lru_cache(maxsize=1)
def _index(
    files: tuple[FileRange, ...], benchmarks: tuple[tuple[str, str], ...], config: DecontaminationConfig
) -> BenchmarkIndex:
    return BenchmarkIndex(_items(files, benchmarks), config)


def _items(files: Sequence[FileRange], benchmarks: Sequence[tuple[str, str]]) -> Iterator[BenchmarkItem]:
    for file, (name, text_key) in zip(files, benchmarks, strict=True):
        options = ReadOptions(text_key=text_key, max_document_bytes=_MAX_ITEM_BYTES)
        for item in read_jsonl(file, options, RangeCount()):
            if isinstance(item, BadRecord):
                # An item that is not looked for would go unnoticed for ever.
                raise DataError(f"{file.path}:{item.line}: {item.reason}: {item.detail}; repair the benchmark")
            yield BenchmarkItem(name, f"{file.path}:{item.line}", item.text)


def decontaminate_part(task: Task) -> TaskResult:
    """The operation `decontaminate`: one shard against all benchmarks."""
    options = task.options
    index = _index(
        tuple(task.inputs[1:]),
        tuple((name, text_key) for name, text_key in options["benchmarks"]),
        DecontaminationConfig(**{name: options[name] for name in _SIZES}),
    )
    folder, matches_name = Path(task.folder), f"{task.name}.matches.jsonl"
    records_in, num_cut = 0, 0
    found: dict[str, list[int]] = {}  # benchmark -> [documents, matches]
    with atomic_output(folder / matches_name, sync=False) as stream, ShardWriter(folder, task.name) as writer:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            records_in += len(batch)
            for document, matches in zip(batch, index.find([one.text for one in batch]), strict=True):
                for name in {match.benchmark for match in matches}:
                    found.setdefault(name, [0, 0])[0] += 1
                for match in matches:
                    found[match.benchmark][1] += 1
                    line = report_line(document.text, match, document.id)
                    stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                text = remove_spans(document.text, matches, options["margin"])
                if matches and (options["remove"] == "document" or not text):
                    writer.drop(document, Drop("contaminated", f"{matches[0].benchmark}: {matches[0].item}"))
                    continue
                num_cut += bool(matches)
                writer.keep(dataclasses.replace(document, text=text))
    counts = {
        "documents_cut": num_cut,
        "items": len(index.items),
        "items_left_out": len(index.left_out),
        "items_found_whole": index.num_whole,
        "matches": dict(sorted(found.items())),
    }
    return writer.result(records_in, matches_name, values=counts)
