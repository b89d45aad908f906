"""Stages that look at one document at a time: each keeps it, changed or not, repeats it, or drops it with a reason."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.engine.document import Document, Drop, Repeat, ShardWriter, batches, read_documents
from data_tools.engine.part_tasks import part_tasks
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.stages.filter_transform import FilterTransform
from data_tools.stages.transforms import TRANSFORMS

Transform = Callable[[list[Document]], Sequence[Document | Drop | Repeat]]


def run_map(
    runner: Runner, folder: Path, inputs: Sequence[Manifest], transform: str, options: Mapping[str, Any]
) -> list[Manifest]:
    """One task for each part of ``inputs``."""
    return runner.run(folder, part_tasks("map", folder, inputs, {"transform": transform, "options": dict(options)}))


def map_part(task: Task) -> TaskResult:
    """The operation `map`: the transform that the options name, over one shard."""
    transform: Transform = TRANSFORMS[task.options["transform"]](task.options["options"])
    records_in = 0
    with ShardWriter(Path(task.folder), task.name) as writer:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            records_in += len(batch)
            for document, result in zip(batch, transform(batch), strict=True):
                if isinstance(result, Drop):
                    writer.drop(document, result)
                elif isinstance(result, Repeat):
                    writer.repeat(*result)
                else:
                    writer.keep(result)
    measured = transform.measured.as_dict() if isinstance(transform, FilterTransform) else {}
    return writer.result(records_in, values={"measured": measured} if measured else None)
