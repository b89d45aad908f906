"""One readable line a step, on one rank."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TextIO

from data_tools.io.progress import shows_progress
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord

# Narrow terminals, and logs with a time before each line.
MOST_COLUMNS = 100
SEPARATOR = "  "
# What a line does without when it would be longer, the first first; all of it is in metrics.jsonl.
DROPPED_FIRST = ("wait", "memory", "metrics", "MFU", "batch", "lr", "norm")


class ConsoleHook(Hook):
    """Prints progress on rank 0, and notes of what is out of the ordinary on lines of their own.

    With --quiet there are no lines of steps, but notes and evaluations.

    Args:
        interval: Steps between lines; the first and the last of a start are always printed.
        stream: Where to; standard output by default.
    """

    def __init__(self, interval: int, stream: TextIO | None = None):
        self.interval = interval
        self.stream = stream or sys.stdout
        self.recent: deque[StepRecord] = deque(maxlen=20)
        # What a line had no room for stays away: columns that come and go cannot be read.
        self.dropped: set[str] = set()

    def on_start(self, run: Run) -> None:
        done, last = run.state.iteration, run.last_step
        if not run.is_main or done == 0:
            return
        if done < last:
            self.note(done, f"started again, goes on with step {done + 1}")
        else:
            key = "training.train_iters" if last == run.num_steps else "training.exit_iter"
            self.note(done, f"this run is finished, nothing is trained; to train on, raise {key}")

    def on_step(self, run: Run, record: StepRecord) -> None:
        is_first = not self.recent
        self.recent.append(record)
        is_finite = math.isfinite(record.loss) and math.isfinite(record.grad_norm)
        wanted = is_first or record.step % self.interval == 0 or record.step == run.last_step
        if not (run.is_main and (wanted or record.spike is not None or not is_finite)):
            return
        line = parts(record, run.last_step, self.time_left(run, record))
        if not run.job.config.training.batch_sizes.samples:
            line = [part for part in line if part[0] != "batch"]
        if shows_progress():
            self.print(self.fitted(line))
        if record.spike is not None:
            self.note(record.step, f"loss spike, {record.spike}")
        if not is_finite:
            self.note(record.step, f"skipped, loss or gradient norm is not finite; {record.skipped_steps} so far")

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        if run.is_main:
            words = [place("eval", record.step, run.last_step), *([] if record.corpus is None else [record.corpus])]
            words += [f"loss {record.eval_loss:.4f}"]
            words += metric_words(record.metrics)
            self.print(SEPARATOR.join([*words, f"{record.eval_seconds:.2f} s"]))

    def time_left(self, run: Run, record: StepRecord) -> float:
        """Seconds to the last step of this run, by samples: the steps of a ramp take longer and longer."""
        samples = run.job.samples_of(run.state, run.last_step - record.step)
        return samples * sum(r.step_seconds for r in self.recent) / sum(r.batch_size for r in self.recent)

    def fitted(self, line: Sequence[tuple[str, str]]) -> str:
        """The parts (name, text) in one line, without those that it has no room for."""
        while True:
            kept = [(name, text) for name, text in line if name not in self.dropped]
            joined = SEPARATOR.join(text for _, text in kept)
            too_many = [name for name in DROPPED_FIRST if name in dict(kept)]
            if len(joined) <= MOST_COLUMNS or not too_many:
                return joined
            self.dropped.add(too_many[0])

    def note(self, step: int, text: str) -> None:
        """A line about something out of the ordinary."""
        self.print(f"note after step {step}: {text}")

    def print(self, line: str) -> None:
        """Writes a line at once."""
        print(line, file=self.stream, flush=True)


def parts(record: StepRecord, last: int, seconds_left: float) -> list[tuple[str, str]]:
    """What is said of a step, in the order of the line: (name, text)."""
    found = [
        ("step", place("step", record.step, last)),
        ("batch", f"batch {record.batch_size}"),
        ("loss", f"loss {record.loss:.4f}"),
        ("norm", f"norm {record.grad_norm:#.3g}"),
        ("lr", f"lr {record.learning_rate:.2e}"),
        ("seconds", f"{record.step_seconds:.2f} s"),
        ("speed", f"{short(record.tokens_per_second)} tok/s"),
        *(("metrics", f"{name} {value:.4g}") for name, value in record.metrics.items()),
    ]
    if record.model_flops_utilization is not None:
        found.append(("MFU", f"MFU {record.model_flops_utilization:.1%}"))
    memory = f"{record.peak_memory_bytes / 2**30:.2f} GiB"
    found += [("memory", memory), ("wait", f"wait {lost_share(record):.0%}")]
    return [*found, ("left", f"left {duration(seconds_left)}")]


def metric_words(metrics: Mapping[str, float]) -> list[str]:
    """Further numbers of an evaluation; a share with an interval is said with it and with what it was counted in."""
    words = []
    for name, value in metrics.items():
        base, _, of = name.partition("/")
        bounds = [metrics.get(f"{base}_{end}/{of}" if of else f"{base}_{end}") for end in ("low", "high")]
        if None not in bounds:
            count = metrics.get(f"pairs/{of}" if of else "pairs", 0.0)
            words.append(f"{name} {value:.1%} ({bounds[0]:.1%} to {bounds[1]:.1%} of {count:.0f})")
        elif name == "perplexity":
            words.append(f"{name} {value:,.1f}")
        elif not base.endswith(("_low", "_high")) and base != "pairs":
            words.append(f"{name} {value:.4g}")
    return words


def place(word: str, step: int, last: int) -> str:
    """A step of those that this run goes to, `training.exit_iter` if that comes first; aligned."""
    return f"{word} {step:>{len(str(last))}}/{last}"


def lost_share(record: StepRecord) -> float:
    """The share of a step in which a rank communicates or waits for data, mean over ranks."""
    lost = record.phase_seconds["communication"] + record.phase_seconds["data"]
    return lost / max(sum(record.phase_seconds.values()), 1e-9)


def short(value: float) -> str:
    """A number in few characters: 950, 204.8k, 1.3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds, the two largest that count."""
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for i, (name, size) in enumerate(units):
        if whole >= size or size == 1:
            text = f"{whole // size}{name}"
            if i + 1 < len(units):
                next_name, next_size = units[i + 1]
                text += f" {whole % size // next_size:02d}{next_name}"
            return text
    raise AssertionError("the loop ends at seconds")
