"""The operations that tasks name, and how one task is done in whatever process it lands."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_tools.engine.failures import forget_failure, recorded
from data_tools.engine.task import Manifest, Task, TaskResult, finished, write_manifest
from data_tools.io.work_done import Told, WorkDone, counting

# Module and function of each; imported when one is done, because a worker that encodes need not wait for the kernels
# and libraries of all the others. The function takes a `Task` and gives a `TaskResult`.
OPERATIONS = {
    "read": ("read", "read_part"),
    "map": ("map", "map_part"),
    "exact_dedup_hash": ("exact_dedup", "hash_part"),
    "exact_dedup_group": ("exact_dedup", "group_bucket"),
    "exact_dedup_apply": ("exact_dedup", "apply_part"),
    "fuzzy_sign": ("fuzzy_dedup", "sign_part"),
    "fuzzy_group": ("fuzzy_dedup", "group_band"),
    "fuzzy_candidates": ("jaccard_tasks", "find_candidates"),
    "fuzzy_shingles": ("jaccard_tasks", "write_candidates"),
    "fuzzy_check": ("jaccard_tasks", "check_bucket"),
    "fuzzy_contract": ("cluster_tasks", "contract_edges"),
    "fuzzy_star": ("cluster_tasks", "next_stars"),
    "fuzzy_weigh": ("cluster_tasks", "weigh_slice"),
    "fuzzy_size": ("cluster_tasks", "add_up_slice"),
    "fuzzy_join": ("cluster_tasks", "join_clusters"),
    "fuzzy_apply": ("fuzzy_dedup", "apply_clusters"),
    "decontaminate": ("decontaminate", "decontaminate_part"),
    "tokenize_encode": ("tokenize_encode", "encode_part"),
    "tokenize_bucket": ("tokenize_gather", "gather_bucket"),
    "tokenize_seal": ("tokenize", "seal_corpus"),
    "chat_encode": ("chat_encode", "encode_part"),
}


def perform(task: Task, told: Told | None = None) -> Manifest:
    """Does ``task`` and writes its manifest.

    Args:
        task: what is done.
        told: is told now and then which share of it is done.
    Raises:
        DataError: an input cannot be used.
        OSError: the disk is full or fails.
    """
    return begin(task, told)()


def begin(task: Task, told: Told | None = None) -> Callable[[], Manifest]:
    """Does ``task`` but for a last check and what waits for the disk; see `perform`.

    Returns:
        what does the rest.
    """
    if (done := finished(task)) is not None:
        return lambda: done
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    # Gone before the files change: a manifest never stands beside files of another run.
    task.manifest_path.unlink(missing_ok=True)
    module, function = OPERATIONS[task.operation]
    operation = getattr(importlib.import_module(f"data_tools.stages.{module}"), function)
    with recorded(task), counting(None if told is None else _work_of(task, told)):
        return partial(_finish, task, operation(task))


def _work_of(task: Task, told: Told) -> WorkDone:
    input_bytes = sum(one.num_bytes for one in task.inputs)
    return WorkDone(told, documents=task.documents, input_bytes=input_bytes, num_bytes=task.num_bytes)


def _finish(task: Task, result: TaskResult) -> Manifest:
    with recorded(task):
        if result.check is not None:
            result.check()
        manifest = write_manifest(task, result)
    forget_failure(task)
    return manifest
