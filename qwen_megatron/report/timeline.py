"""When something happened in a run: its step, the tokens consumed by then, the seconds trained by then; and what."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from qwen_megatron.report.run_files import Row, RunFiles, moment, number, section


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened besides training.

    Attributes:
        kind: `start`, `restart`, `failure`, `spike`, `skipped`, `checkpoint` or `end`.
        step: The step it happened at or after.
        text: What there is to say, for people.
    """

    kind: str
    step: float
    text: str


class Clock:
    """Tokens and seconds by step; the seconds are those of the steps that count, without evaluations and saves.

    Args:
        rows: Of the steps.
    """

    def __init__(self, rows: RunFiles):
        by_step = {step: row for row in rows.steps if (step := number(row.get("step"))) is not None}
        self.steps = sorted(by_step)
        self.tokens: list[float] = []
        self.seconds: list[float] = []
        passed = 0.0
        for step in self.steps:
            row = by_step[step]
            passed += max(number(row.get("step_seconds")) or 0.0, 0.0)
            tokens = number(row.get("consumed_tokens"))
            self.tokens.append(tokens if tokens is not None else self.tokens[-1] if self.tokens else 0.0)
            self.seconds.append(passed)

    def at(self, step: float) -> tuple[float, float]:
        """(tokens, seconds) after a step: those of the last one known up to it, zero before the first."""
        place = bisect.bisect_right(self.steps, step) - 1
        return (self.tokens[place], self.seconds[place]) if place >= 0 else (0.0, 0.0)


def events(run: RunFiles) -> list[Event]:
    """What happened, by step: starts and failures, spikes and skipped steps, checkpoints that are there, the end."""
    found = [*starts(run), *failures(run), *odd_steps(run)]
    found += [Event(kind="checkpoint", step=step, text="kept in the folder") for step in run.checkpoints]
    if run.completion is not None and (step := number(run.completion.get("step"))) is not None:
        found.append(Event(kind="end", step=step, text=str(run.completion.get("reason"))))
    return sorted(found, key=lambda event: event.step)


def starts(run: RunFiles) -> Iterator[Event]:
    """The first start, and every later one as a restart."""
    for count, row in enumerate(run.starts):
        if (step := number(row.get("step"))) is not None:
            words = [str(moment(row[name])) for name in ("time", "host") if name in row]
            yield Event(kind="restart" if count else "start", step=step, text=", ".join(words))


def failures(run: RunFiles) -> Iterator[Event]:
    """What starts ended with."""
    for row in run.failures:
        if (step := number(row.get("step"))) is not None:
            yield Event(kind="failure", step=step, text=f"{row.get('error')}: {row.get('message', '')}")


def odd_steps(run: RunFiles) -> Iterator[Event]:
    """Steps whose loss jumped, and steps left out because a number was not finite."""
    for row in run.steps:
        step = number(row.get("step"))
        if step is None:
            continue
        if isinstance(row.get("spike"), str):
            loss = number(row.get("loss"))
            said = "" if loss is None else f", loss {loss:.4f}"
            yield Event(kind="spike", step=step, text=f"{row['spike']}{said}")
        if row.get("loss", 0.0) is None or row.get("grad_norm", 0.0) is None:
            yield Event(kind="skipped", step=step, text="loss or gradient norm was not finite")


def tokens_by_corpus(run: RunFiles, clock: Clock) -> dict[str, tuple[float, float | None]]:
    """(tokens, epochs) that each corpus has given so far; epochs are None where its size is not known.

    The last start tells what each had given by then, and its share from there on.
    """
    if not run.starts or not clock.steps:
        return {}
    start: Row = run.starts[-1]
    since = clock.tokens[-1] - clock.at(number(start.get("step")) or 0.0)[0]
    found: dict[str, tuple[float, float | None]] = {}
    corpora = section(start, "corpora")
    for name in corpora:
        row = section(corpora, name)
        share, given, epoch = (number(row.get(key)) for key in ("share", "consumed_tokens", "epoch_tokens"))
        if share is not None and given is not None:
            tokens = given + share * since
            found[name] = tokens, tokens / epoch if epoch else None
    return found
