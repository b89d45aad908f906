"""Shards to shuffled corpora in two passes, memory bounded by the size of a run and of a bucket.

First pass: each shard is encoded to runs of documents sorted by shuffle key. Second pass: tasks, each of which writes
a stretch of the token file, take the ranges of keys that lie in it from every run and sort them, one bucket of ranges
after the other. The order is the one that docs/data-format.md defines: the bytes are those of ``qwen-data tokenize``
for the same shards, which does the same tasks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.rejections import publish_list, rejected_path
from data_tools.corpus.sidecar import InputFile
from data_tools.engine.document import LONGEST_LINE_BYTES
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.quarantine import write_quarantine
from data_tools.engine.runner import Runner, SupersededError
from data_tools.engine.task import QUARANTINE_FILE, Manifest, Task, TaskResult, documents_file, finished, read_manifest
from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import remove_tree, require_plain_name
from data_tools.io.small_json import build, read_json
from data_tools.io.streams import BROKEN
from data_tools.settings.records import Count, Seed64, record
from data_tools.stages.tokenize_encode import NUM_FIRST_CHECKED
from data_tools.stages.tokenize_gather import gather_runs
from data_tools.stages.tokenize_rejections import rows_with_ids
from data_tools.stages.tokenize_runs import TOKENS_IN_MEMORY, RunSizes
from data_tools.stages.tokenize_seal import seal

_SEAL_PLAN = "seal.json"


@record
class TokenizeStage:
    """Options of the stage `tokenize`."""

    corpus_per_source: bool = True
    """A corpus for each source, as blending needs; else one named "corpus"."""
    seed: Seed64 = 1234
    """Seed of the document order."""
    shuffle: bool = True
    """False keeps the order of the shards."""
    encoder: Literal["native", "tiktoken"] = "native"
    """`native` is fast, `tiktoken` the reference."""
    check_interval: Count = 1000
    """One record in this many is compared with tiktoken, and the first 64 of each shard."""
    tokens_in_memory: Count = TOKENS_IN_MEMORY
    """Most tokens of a run and of a bucket, about 4 bytes of a worker's memory each; small inputs take less."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Makes OUTPUT/corpora/SOURCE.bin and so on; what lies between is removed when the corpus is complete."""
        groups: dict[str, list[Manifest]] = {}
        for part in inputs:
            if part.records_out == 0:
                continue  # Nothing in it, not even the name of a source.
            groups.setdefault(_source_of(part) if self.corpus_per_source else "corpus", []).append(part)
        if not groups:
            raise DataError(
                f"{folder.name}: no documents are left to tokenize; the counts of the stages say where they went"
            )
        corpora = folder.parent.parent / "corpora"
        return [self._corpus(runner, folder / name, corpora, name, parts) for name, parts in sorted(groups.items())]

    def _corpus(self, runner: Runner, folder: Path, corpora: Path, name: str, parts: Sequence[Manifest]) -> Manifest:
        shards = [part.output(documents_file(part.name)) for part in parts]
        task = Task(
            operation="tokenize_seal",
            folder=str(corpora),
            name=name,
            options={**self._encoding(), "seed": self.seed, "shuffle": self.shuffle, "work": str(folder)},
            inputs=(write_input_list(folder / "shards.json", shards),),
            documents=sum(part.records_out for part in parts),
        )
        if (manifest := finished(task)) is None:
            runner.require(shards)  # Their sizes are noted in the end, when all have been encoded.
            runner.superseded_by = task
            try:
                self._prepare(runner, folder, parts, shards)
            except SupersededError:
                pass  # This array job is late: another has done the rest and taken the ranges away.
            finally:
                runner.superseded_by = None
            (manifest,) = runner.run(corpora, [task], sweep=False)
        else:
            runner.tasks_skipped += 1
        if runner.is_alone:
            for work in ("runs", "buckets", "checksums"):  # The last one of earlier versions.
                remove_tree(folder / work, folder)
        return manifest

    def _encoding(self) -> dict[str, str | int]:
        return {"encoder": self.encoder, "check_interval": self.check_interval}

    def _prepare(self, runner: Runner, folder: Path, parts: Sequence[Manifest], shards: Sequence[FileRange]) -> None:
        text_bytes = [sum(size for _, size in part.statistics["by_source"].values()) for part in parts]
        sizes = RunSizes.of(sum(text_bytes), self.tokens_in_memory)
        encode = [
            Task(
                operation="tokenize_encode",
                folder=str(folder / "runs"),
                name=f"shard-{number:06d}",
                options={
                    **self._encoding(),
                    "all_checked": NUM_FIRST_CHECKED,
                    "text_key": "text",
                    "max_line_bytes": LONGEST_LINE_BYTES,
                    "files": [*files],
                    "seed": self.seed,
                    "shuffle": self.shuffle,
                    "run_tokens": sizes.run_tokens,
                    "num_ranges": sizes.num_ranges,
                },
                inputs=tuple(shards[file] for file in files),
                read_bytes=sum(text_bytes[file] for file in files),
            )
            for number, files in enumerate(sizes.groups(text_bytes))
        ]
        encoded = runner.run(folder / "runs", encode)
        for task, manifest in zip(encode, encoded, strict=True):
            if any(manifest.rejected.get(reason) for reason in BROKEN):
                paths = ", ".join(shard.path for shard in task.inputs)
                raise DataError(f"{paths}: the shard is damaged; delete it and run the pipeline again")
        if not any(manifest.records_out for manifest in encoded):
            raise DataError(f"{folder.name}: the encoder refuses all documents; {folder / 'runs'} lists why")
        write_quarantine(folder / QUARANTINE_FILE, encoded, rows_with_ids)
        target, gathered = gather_runs(runner, folder, encoded, sizes, shuffle=self.shuffle)
        rejected: Counter[str] = Counter()
        for manifest in encoded:
            rejected.update(manifest.rejected)
        plan = {
            "target": target.name,
            "buckets": [one.name for one in gathered],
            "rejected": rejected,
        }
        write_atomically(folder / _SEAL_PLAN, orjson.dumps(plan))


@dataclass(frozen=True, kw_only=True)
class _SealPlan:
    """The token file, the tasks that wrote its stretches, and what was rejected before."""

    target: str
    buckets: list[str]
    rejected: dict[str, int]


def seal_corpus(task: Task) -> TaskResult:
    """The operation `tokenize_seal`: a token file to a corpus."""
    work, prefix = Path(task.options["work"]), Path(task.folder, task.name)
    plan = build(_SealPlan, read_json(work / _SEAL_PLAN), str(work / _SEAL_PLAN))
    target = work / require_plain_name(plan.target, f"{work / _SEAL_PLAN}: target")
    gathered = [read_manifest(work / "buckets", name) for name in plan.buckets]
    inputs = []
    for shard in read_input_list(task.inputs[0]):
        status = Path(shard.path).stat()
        inputs.append(InputFile(path=shard.path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns))
    with corpus_lock(prefix):
        publish_list(work / QUARANTINE_FILE, rejected_path(prefix))
        seed = task.options["seed"] if task.options["shuffle"] else None
        rejected = Counter(plan.rejected)
        sidecar = seal(prefix, target, gathered, rejected, inputs, seed)
    digests = {"bin": sidecar.bin, "idx": sidecar.idx, "crc": sidecar.crc}
    return TaskResult(
        outputs=[f"{task.name}.{suffix}" for suffix in (*digests, "json")],
        records_in=sidecar.records_in,
        records_out=sidecar.num_documents,
        rejected=rejected,
        digests={f"{task.name}.{suffix}": (one.size_bytes, one.sha256) for suffix, one in digests.items()},
        values={"prefix": str(prefix), "tokens": sidecar.num_tokens},
    )


def _source_of(part: Manifest) -> str:
    sources = list(part.statistics["by_source"])
    if len(sources) > 1:
        raise RuntimeError(f"{part.folder}/{part.name}: documents of several sources: {sources}; this is a bug")
    # The name of folders and of the corpus.
    return require_plain_name(sources[0], f"{part.folder}/{part.name}.manifest.json: statistics.by_source")
