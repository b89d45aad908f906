"""The operations that tasks name, and how one task is done in whatever process it lands."""

from collections.abc import Callable
from pathlib import Path

from data_tools.pipeline.decontaminate_stage import decontaminate_part
from data_tools.pipeline.exact_dedup_stage import apply_part, group_bucket, hash_part
from data_tools.pipeline.fuzzy_dedup_stage import apply_clusters, group_band, join_clusters, sign_part
from data_tools.pipeline.jaccard_tasks import check_bucket, find_candidates, write_candidates
from data_tools.pipeline.map_stage import map_part
from data_tools.pipeline.read_stage import read_part
from data_tools.pipeline.task import Manifest, Task, TaskResult, finished, write_manifest
from data_tools.pipeline.tokenize_encode import encode_part
from data_tools.pipeline.tokenize_gather import gather_bucket
from data_tools.pipeline.tokenize_stage import seal_corpus

OPERATIONS: dict[str, Callable[[Task], TaskResult]] = {
    "read": read_part,
    "map": map_part,
    "exact_dedup_hash": hash_part,
    "exact_dedup_group": group_bucket,
    "exact_dedup_apply": apply_part,
    "fuzzy_sign": sign_part,
    "fuzzy_group": group_band,
    "fuzzy_candidates": find_candidates,
    "fuzzy_shingles": write_candidates,
    "fuzzy_check": check_bucket,
    "fuzzy_join": join_clusters,
    "fuzzy_apply": apply_clusters,
    "decontaminate": decontaminate_part,
    "tokenize_encode": encode_part,
    "tokenize_bucket": gather_bucket,
    "tokenize_seal": seal_corpus,
}


def perform(task: Task) -> Manifest:
    """Does ``task`` and writes its manifest.

    Raises:
        DataError: an input cannot be used.
        OSError: the disk is full or fails.
    """
    if (done := finished(task)) is not None:
        return done
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    # Gone before the files change: a manifest never stands beside files of another run.
    task.manifest_path.unlink(missing_ok=True)
    return write_manifest(task, OPERATIONS[task.operation](task))
