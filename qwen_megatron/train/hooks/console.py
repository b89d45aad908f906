"""One readable line a step, on one rank."""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import TextIO

from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord


class ConsoleHook(Hook):
    """Prints progress on rank 0.

    Args:
        interval: Steps between lines; the first and the last of a start are always printed.
        stream: Where to; standard output by default.
    """

    def __init__(self, interval: int, stream: TextIO | None = None):
        self.interval = interval
        self.stream = stream or sys.stdout
        self.recent: deque[StepRecord] = deque(maxlen=20)

    def on_step(self, run: Run, record: StepRecord) -> None:
        is_first = not self.recent
        self.recent.append(record)
        last = run.num_steps
        wanted = is_first or record.step % self.interval == 0 or record.step == run.last_step
        wanted = wanted or record.spike is not None or not math.isfinite(record.loss + record.grad_norm)
        if not (run.is_main and wanted):
            return
        # By samples: the steps of a ramp take longer and longer.
        samples = run.job.samples_of(run.state, run.last_step - record.step)
        seconds = sum(r.step_seconds for r in self.recent) / sum(r.batch_size for r in self.recent)
        left = samples * seconds
        parts = [
            f"step {record.step:>{len(str(last))}}/{last}",
            f"loss {record.loss:.4f}",
            f"grad norm {record.grad_norm:.3f}",
            f"lr {record.learning_rate:.2e}",
            f"{record.step_seconds:.2f} s ({lost_time(record)})",
            f"{record.tokens_per_second:,.0f} tokens/s",
        ]
        if run.job.config.training.batch_sizes.samples:
            parts.insert(1, f"batch {record.batch_size}")
        parts += [f"{name} {value:.4g}" for name, value in record.metrics.items()]
        if record.model_flops_utilization is not None:
            parts.append(f"MFU {record.model_flops_utilization:.1%}")
        parts += [f"{record.peak_memory_bytes / 2**30:.2f} GiB/rank", f"left {duration(left)}"]
        if record.spike is not None:
            parts.append(f"spike, {record.spike}")
        if not math.isfinite(record.loss) or not math.isfinite(record.grad_norm):
            parts.append(f"skipped, {record.skipped_steps} so far")
        self.print(" | ".join(parts))

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        if run.is_main:
            last = run.num_steps
            self.print(
                f"eval {record.step:>{len(str(last))}}/{last} | loss {record.eval_loss:.4f} | "
                f"perplexity {record.perplexity:,.1f} | {record.eval_seconds:.2f} s"
            )

    def print(self, line: str) -> None:
        """Writes a line at once."""
        print(line, file=self.stream, flush=True)


def lost_time(record: StepRecord) -> str:
    """The shares of a step in which a rank does not compute, mean over ranks."""
    whole = max(sum(record.phase_seconds.values()), 1e-9)
    return ", ".join(f"{name} {record.phase_seconds[name] / whole:.0%}" for name in ("communication", "data"))


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
