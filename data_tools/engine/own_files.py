"""Which files below a pipeline's output are its own: only these are removed, whatever else somebody keeps there."""

import re
from collections.abc import Collection
from pathlib import Path

from data_tools.io.owned_paths import remove_files, require_below

# What tasks name their files: by part of the input, bucket of a shuffle, shard of a corpus, band of signatures.
_TASK_FILE = (
    r"(?:(?:part|bucket|shard)-\d{6,}|band-\d{3,}-part-\d{4,})\..+"
    r"|(?:all|clusters)\.(?:manifest|failed)\.json|(?:candidates|removed|sizes)\.npy"
)
_STAGE_FILE = rf"{_TASK_FILE}|(?:[a-z]+|round-\d{{3,}}-[a-z]+)\.json|rejected\.jsonl"
_CORPUS_FILE = r".+\.(?:json|rejected\.jsonl)"
_OUTPUT_FILE = r"pipeline\.json|mixture\.yaml|report\.html"
_STAGE = re.compile(r"\d{2,}-.+")


def _temporary(name_pattern: str) -> re.Pattern[str]:
    """Temporary files of these; the buckets of earlier versions had no random part in the name."""
    return re.compile(rf"\.(?:{name_pattern})(?:\.[a-z0-9_]+)?\.tmp")


def sweep(folder: Path, wanted: Collection[str]) -> None:
    """Removes the files of tasks in ``folder`` that are not ``wanted``: of killed or differently configured runs."""
    unwanted = re.compile(f"{_TASK_FILE}|{_temporary(_STAGE_FILE).pattern}")
    for path in folder.iterdir():
        if path.name not in wanted and unwanted.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()


def remove_leftovers(output: Path) -> None:
    """Removes the temporary files that a killed run left in its folders; the caller holds the output's lock.

    Raises:
        PathError: a symbolic link leads out of ``output``.
    """
    remove_files(output, _temporary(_OUTPUT_FILE))
    corpora = output / "corpora"
    if corpora.is_dir():
        require_below(corpora, output)
        remove_files(corpora, _temporary(_CORPUS_FILE))
    stages = output / "stages"
    if not stages.is_dir():
        return
    require_below(stages, output)
    for stage in stages.iterdir():
        if _STAGE.fullmatch(stage.name) and stage.is_dir():
            require_below(stage, output)
            remove_files(stage, _temporary(_STAGE_FILE))
            # rglob does not descend into links.
            for folder in stage.rglob("*"):
                if folder.is_dir() and not folder.is_symlink():
                    remove_files(folder, _temporary(_STAGE_FILE))
