"""A rank is killed in a save; the run goes on from the newest whole checkpoint, and not one bit changes."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.job import LONG, Job, assert_bitwise
from tests.faults.sick_worker import Fault
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

INTERVAL = 3


@dataclass(frozen=True)
class Place:
    """Where a rank dies in its first save.

    Attributes:
        name: In words.
        at: The function it dies at the call of.
        calls: It dies at one of these calls, the first and the last one given.
        whole: The checkpoint is complete by then.
        only_main: Only rank 0 comes there.
    """

    name: str
    at: str
    calls: tuple[int, int] = (1, 1)
    whole: bool = False
    only_main: bool = False


SAVE, FILE = "qwen_megatron.checkpoint.save", "qwen_megatron.checkpoint.hashed_file"
BEGINNING = [
    Place("before the shards", f"{SAVE}:write_tensors"),
    Place("at the end of a shard", f"{FILE}:HashedFile.close"),
    # The third call comes beside the commit.
    Place("before the sizes are gathered", f"{SAVE}:failing_together", calls=(1, 2)),
]
COMMIT = [
    Place("before the small state", f"{SAVE}:save_config", only_main=True),
    Place("before the manifest", f"{SAVE}:write_manifest", only_main=True),
    Place("before the rename", f"{SAVE}:publish", only_main=True),
    # A start writes config.yaml and shims.txt in this way, a save state.json, the manifest, and `latest` at last.
    Place("after the rename", "qwen_megatron.checkpoint.manifest:write_synced", (5, 5), whole=True, only_main=True),
    Place("after latest", "qwen_megatron.checkpoint.retention:Retention.committed", whole=True, only_main=True),
    Place("in the removal of an old one", "qwen_megatron.checkpoint.retention:sync_folder", whole=True, only_main=True),
]
PLACES = {
    "asynchronous": [*BEGINNING, Place("in a shard", f"{FILE}:HashedFile.write"), *COMMIT],
    "synchronous": [*BEGINNING, Place("in a shard", f"{FILE}:HashedFile.write", calls=(1, 200)), *COMMIT],
}


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("asynchronous", ("in a shard", "before the rename")),
        pytest.param("asynchronous", None, marks=pytest.mark.faults),
        pytest.param("synchronous", None, marks=pytest.mark.faults),
    ],
)
def test_killed_in_a_save_goes_on_from_the_newest_whole_checkpoint(
    mode: str, names: tuple[str, ...] | None, ranks: RankPool, byte_corpus: Path, tmp_path: Path
) -> None:
    places = [place for place in PLACES[mode] if names is None or place.name in names]
    drawn = random.Random(20261125)
    # Removal needs a checkpoint that has become too many.
    places.sort(key=lambda place: (place.name == "in the removal of an old one", drawn.random()))
    faults, newest = [], 0
    expected = [newest]
    for attempt, place in enumerate(places):
        rank = 0 if place.only_main else drawn.randrange(2)
        calls = (drawn.randint(*place.calls),)
        faults.append(Fault(rank=rank, at=place.at, do="kill", calls=calls, attempt=attempt))
        newest += INTERVAL if place.whole else 0
        expected.append(newest)
    settings = (
        f"checkpoint.save_interval={INTERVAL}",
        "checkpoint.keep_last=1",
        f"checkpoint.async_save={str(mode == 'asynchronous').lower()}",
        f"training.exit_iter={newest + 2 * INTERVAL}",
    )
    with Job(tmp_path / "run", byte_corpus, 2, *settings, max_restarts=len(places), faults=faults) as job:
        assert job.wait(60 + 30 * len(places)) == 0, job.output()
    undisturbed = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "whole", *settings, base=LONG)
    assert_bitwise(job.rows(), undisturbed)
    assert job.output().count("parameters on cpu") == len(places) + 1
    gone_on = [int(step) for step in re.findall(r"going on from \S+ \(step (\d+)\)", job.output())]
    assert gone_on == [step for step in expected if step], job.output()
    assert [path.name for path in (tmp_path / "run").glob("iter_*")] == [f"iter_{newest + 2 * INTERVAL:07d}"]
    assert not list((tmp_path / "run").glob(".iter_*"))
    points = "; ".join(f"rank {fault.rank} {place.name}" for fault, place in zip(faults, places, strict=True))
    print(f"\n{mode}: {len(places)} kills in a save, {len(undisturbed)} steps bitwise ({points})")
