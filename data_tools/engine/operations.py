"""The operations that tasks name, and how one task is done in whatever process it lands."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_tools.engine.failures import forget_failure, recorded
from data_tools.engine.task import Manifest, Task, TaskResult, finished, write_manifest

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
    "tokenize_checksum": ("tokenize_checksum", "checksum_segments"),
    "tokenize_seal": ("tokenize", "seal_corpus"),
    "chat_encode": ("chat_encode", "encode_part"),
}


def perform(task: Task) -> Manifest:
    """Does ``task`` and writes its manifest.

    Raises:
        DataError: an input cannot be used.
        OSError: the disk is full or fails.
    """
    return begin(task)()


def begin(task: Task) -> Callable[[], Manifest]:
    """Does ``task`` but for a last check and what waits for the disk.

    Returns:
        what does the rest; see `perform`.
    """
    if (done := finished(task)) is not None:
        return lambda: done
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    # Gone before the files change: a manifest never stands beside files of another run.
    task.manifest_path.unlink(missing_ok=True)
    module, function = OPERATIONS[task.operation]
    operation = getattr(importlib.import_module(f"data_tools.stages.{module}"), function)
    with recorded(task):
        return partial(_finish, task, operation(task))


def _finish(task: Task, result: TaskResult) -> Manifest:
    with recorded(task):
        if result.check is not None:
            result.check()
        manifest = write_manifest(task, result)
    forget_failure(task)
    return manifest
