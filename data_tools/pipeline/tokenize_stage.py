"""Shards to shuffled corpora in two passes, memory bounded by the size of a run and of a bucket.

First pass: each shard is encoded to runs of documents sorted by shuffle key. Second pass: the keys are cut into equal
ranges, one bucket each; a bucket takes its range from every run and sorts it. The buckets, one after the other, are
the corpus, in the order that docs/data-format.md defines: the same bytes as ``qwen-data tokenize`` of the same shards.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.encoder import ENCODERS
from data_tools.errors import DataError
from data_tools.pipeline.input_list import write_input_list
from data_tools.pipeline.runner import Runner
from data_tools.pipeline.settings import rule
from data_tools.pipeline.task import Manifest, Task, TaskInput, finished

_TOKENS_IN_MEMORY = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class TokenizeStage:
    """Options of the stage `tokenize`.

    Attributes:
        corpus_per_source: a corpus for each source, as blending needs; else one named "corpus".
        seed: seed of the document order.
        shuffle: false keeps the order of the shards.
        encoder: "gigatoken" (fast) or "tiktoken" (reference).
        check_interval: one record in this many is compared with tiktoken, and the first 64 of each shard.
        tokens_in_memory: size of a run and of a bucket; about 16 bytes of memory for each token.
    """

    corpus_per_source: bool = True
    seed: int = rule(lambda value: 0 <= value < 2**64, "must be 0 to 2^64 - 1", 1234)
    shuffle: bool = True
    encoder: str = rule(lambda value: value in ENCODERS, f"must be one of {', '.join(ENCODERS)}", "gigatoken")
    check_interval: int = rule(lambda value: value >= 1, "must be at least 1", 1000)
    tokens_in_memory: int = rule(lambda value: value >= 1, "must be at least 1", _TOKENS_IN_MEMORY)

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
        shards = [part.output(f"{part.name}.jsonl.zst") for part in parts]
        seal = Task(
            operation="tokenize_seal",
            folder=str(corpora),
            name=name,
            options={**self._encoding(), "seed": self.seed, "shuffle": self.shuffle, "work": str(folder)},
            inputs=(write_input_list(folder / "shards.json", shards),),
        )
        if (manifest := finished(seal)) is None:
            self._prepare(runner, folder, shards)
            (manifest,) = runner.run(corpora, [seal], sweep=False)
        else:
            runner.tasks_skipped += 1
        if runner.is_alone:
            for work in ("runs", "buckets"):
                shutil.rmtree(folder / work, ignore_errors=True)
        return manifest

    def _encoding(self) -> dict[str, str | int]:
        return {"encoder": self.encoder, "check_interval": self.check_interval}

    def _prepare(self, runner: Runner, folder: Path, shards: Sequence[TaskInput]) -> None:
        encode = [
            Task(
                operation="tokenize_encode",
                folder=str(folder / "runs"),
                name=f"shard-{number:06d}",
                options={
                    **self._encoding(),
                    "file_number": number,
                    "seed": self.seed,
                    "shuffle": self.shuffle,
                    "run_tokens": self.tokens_in_memory,
                },
                inputs=(shard,),
            )
            for number, shard in enumerate(shards)
        ]
        encoded = runner.run(folder / "runs", encode)
        runs = [
            manifest.output(f"{run}.{suffix}")
            for manifest in encoded
            for run in manifest.values["runs"]
            for suffix in ("index", "tokens")
        ]
        num_tokens = sum(manifest.values["tokens"] for manifest in encoded)
        if not runs:
            raise DataError(f"{folder.name}: the encoder refuses all documents; {folder / 'runs'} lists why")
        run_list = write_input_list(folder / "runs.json", runs)
        # Without a shuffle a bucket is a run: they are in order already.
        num_buckets = max(1, -(-num_tokens // self.tokens_in_memory)) if self.shuffle else len(runs) // 2
        buckets = [
            Task(
                operation="tokenize_bucket",
                folder=str(folder / "buckets"),
                name=f"bucket-{number:06d}",
                options={"bucket": number, "num_buckets": num_buckets, "shuffle": self.shuffle},
                inputs=(run_list,),
            )
            for number in range(num_buckets)
        ]
        gathered = runner.run(folder / "buckets", buckets)
        outputs = [
            manifest.output(f"{manifest.name}.{kind}") for manifest in gathered for kind in ("lengths", "tokens")
        ]
        write_input_list(folder / "buckets.json", outputs)
        write_input_list(folder / "rejections.json", [one.output(f"{one.name}.rejected.jsonl") for one in encoded])


def _source_of(part: Manifest) -> str:
    sources = list(part.statistics["by_source"])
    if len(sources) > 1:
        raise RuntimeError(f"{part.folder}/{part.name}: documents of several sources: {sources}; this is a bug")
    return sources[0]
