"""What a rank finds out about the others when the job fails: their last beats, and whether their processes exist.

A rank that waits for a dead or silent one learns nothing from its collective but that something is wrong. Every rank
tells the job's store each second what it is doing; on the same machine, a process that is no more is known at once.
Few ranks look, the others take over what they found: a thousand ranks fail at the same moment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

LEFT = "left"
# What is done after a step and before the next.
BETWEEN_STEPS = ("evaluation", "weight consistency", "saving")
# Ranks that look for themselves; more than one, because the first may be ended before it has told.
DESCRIBERS = 3
# Keys of one request.
KEYS = 128
PAUSE_SECONDS = 0.05
# How long the others wait for what the first has found, after the time that looking takes.
SPARE_SECONDS = 5.0
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank last told.

    Attributes:
        number: Beats so far.
        step: Number of the step under way; 0 before training.
        phase: Innermost phase; `LEFT` after the end.
        activity: Outermost phase.
        time: Its clock, seconds since 1970.
        process: Host and process number, in words.
        identity: `identity_of` its process.
        gone: It has left, or has reported a failure and is about to.
        failed: The failure was its own, not that it lost a peer.
    """

    number: int
    step: int
    phase: str
    activity: str
    time: float
    process: str
    identity: str
    gone: bool
    failed: bool = False

    def to_json(self) -> str:
        """The beat as it stands in the job's store."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: bytes) -> Beat | None:
        """None if a peer of another version wrote it."""
        try:
            values = json.loads(text)
            return cls(**values) if isinstance(values, dict) else None
        except (ValueError, TypeError, RecursionError):
            return None


@dataclass
class Beats:
    """One look at all ranks.

    Attributes:
        known: Last beats, by rank.
        absent: Ranks that have never told anything.
        unknown: Ranks the store gave no answer about: nothing follows from that.
    """

    known: dict[int, Beat] = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


def read_beats(store: dist.Store, ranks: Iterable[int]) -> Beats:
    """The last beats of some ranks: two requests for each `KEYS` of them, some more for each that is absent."""
    wanted = list(ranks)
    beats = Beats(unknown=set(wanted))
    pending = [wanted[start : start + KEYS] for start in range(0, len(wanted), KEYS)]
    try:
        while pending:
            some = pending.pop()
            keys = [f"beat/{rank}" for rank in some]
            # Asking for a key that is not there would wait for it.
            if store.check(keys):
                for rank, text in zip(some, store.multi_get(keys), strict=True):
                    beat = Beat.parse(text)
                    if beat is not None:
                        beats.known[rank] = beat
                        beats.unknown.discard(rank)
            elif len(some) == 1:
                beats.absent.add(some[0])
                beats.unknown.discard(some[0])
            else:
                pending += [some[: len(some) // 2], some[len(some) // 2 :]]
    except RuntimeError:
        # The store is gone or does not answer; what was read is told.
        return beats
    return beats


def describe(store: dist.Store, rank: int, world_size: int, silence_seconds: float) -> str:
    """Which ranks are dead or silent and where everybody was last, in words.

    Args:
        store: A connection of the caller's own: waiting blocks it.
        rank: The caller, who is not looked at.
        world_size: Ranks of the job.
        silence_seconds: A rank whose beat does not change for so long from now is silent.
    """
    try:
        if store.add("describers", 1) > DESCRIBERS:
            return found_by_others(store, silence_seconds + SPARE_SECONDS)
        text = look(store, rank, world_size, silence_seconds)
        store.set("description", text)
    except RuntimeError:
        return "the job's store does not answer, nothing is known of the other ranks"
    return text


def found_by_others(store: dist.Store, seconds: float) -> str:
    """What another rank has told of the silent ones, waited for no longer than this."""
    try:
        # One request, which waits for the key.
        store.set_timeout(timedelta(seconds=seconds))
        return f"as another rank found, {store.get('description').decode(errors='replace')}"
    except RuntimeError:
        return "what has become of the other ranks is said by those that failed first"


def look(store: dist.Store, rank: int, world_size: int, silence_seconds: float) -> str:
    """Looks for what has become of the others, in words; see `describe`.

    At once where a rank has said what failed or its process has ended, otherwise after `silence_seconds`.
    """
    everyone = range(world_size)
    before = read_beats(store, everyone)
    failed = [other for other, beat in before.known.items() if beat.failed and other != rank]
    if failed:
        return in_words(before, dict.fromkeys(failed, "has failed by itself"))
    deadline = time.monotonic() + silence_seconds
    here = machine()
    neighbours = [other for other, beat in before.known.items() if other != rank and is_of(here, beat.identity)]
    while time.monotonic() < deadline:
        staying = {other: before.known[other] for other in neighbours if not before.known[other].gone}
        ended = [other for other, beat in staying.items() if has_ended(beat.identity)]
        # One that ended after a word of its own has told so by now.
        newer = read_beats(store, ended).known
        before.known.update(newer)
        dead = [other for other, beat in newer.items() if not beat.gone]
        if dead:
            return in_words(before, dict.fromkeys(dead, "has ended without a word"))
        time.sleep(PAUSE_SECONDS)
    after = read_beats(store, everyone)
    silent = {
        other: "is silent"
        for other, beat in after.known.items()
        if other != rank and not beat.gone and other in before.known and beat.number == before.known[other].number
    }
    return in_words(after, silent)


def in_words(beats: Beats, accused: dict[int, str]) -> str:
    """The ranks that are to blame first, then what is not known, then where the others are."""
    now, told = time.time(), []
    for rank, what in sorted(accused.items()):
        beat = beats.known[rank]
        told.append(
            f"rank {rank} ({beat.process}) {what}, it was last {place(beat)}, {max(0.0, now - beat.time):.0f} s ago"
        )
    if beats.absent:
        told.append(f"{numbered(beats.absent)} {'has' if len(beats.absent) == 1 else 'have'} never been heard of")
    if not told and not beats.unknown:
        told.append("every rank is alive")
    if beats.unknown:
        told.append(f"nothing is known of {numbered(beats.unknown)}, the job's store does not answer")
    waiting: dict[str, list[int]] = defaultdict(list)
    for rank, beat in sorted(beats.known.items()):
        if rank not in accused:
            waiting[place(beat)].append(rank)
    told += [f"{numbered(ranks)} {where}" for where, ranks in waiting.items()]
    return "; ".join(told)


def place(beat: Beat) -> str:
    """`in forward of step 17`, `in communication of evaluation after step 16`, `gone after step 16`."""
    if beat.phase == LEFT:
        return f"gone after step {beat.step - 1}"
    if beat.activity in BETWEEN_STEPS:
        inner = "" if beat.phase == beat.activity else f"{beat.phase} of "
        return f"in {inner}{beat.activity} after step {beat.step - 1}"
    return f"in {beat.phase}" if beat.step == 0 else f"in {beat.phase} of step {beat.step}"


def numbered(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0, 1, 5 to 1023`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    single = len(runs) == 1 and len(runs[0]) == 1
    return f"{'rank' if single else 'ranks'} {', '.join(parts)}"


def identity_of(pid: int) -> str:
    """Names a process of this machine for ever: `machine`, number, start; "" where that is unknown.

    Numbers are used again, starts are not.
    """
    try:
        return f"{machine()} {pid} {state_of(pid)[1]}" if machine() else ""
    except (OSError, IndexError):
        return ""


def machine() -> str:
    """This machine since its boot, and the space of process numbers: containers have their own. "" if unknown."""
    try:
        return f"{(PROC / 'sys/kernel/random/boot_id').read_text().strip()} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def is_of(here: str, identity: str) -> bool:
    """Whether a process's identity is one of this machine's."""
    return bool(here) and identity.startswith(f"{here} ")


def has_ended(identity: str) -> bool:
    """Whether a process of this machine is no more; False where that cannot be told."""
    pid, _, started = identity.rpartition(" ")
    pid = pid.rpartition(" ")[2]
    if not pid.isdigit():
        return False
    try:
        state, now_started = state_of(int(pid))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, IndexError):
        return False
    # A zombie's parent has not looked yet.
    return state in "ZX" or now_started != started


def state_of(pid: int) -> tuple[str, str]:
    """State and start of a process (fields 3 and 22 of proc(5)'s stat; the name before them may hold anything)."""
    fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]
