"""torch's profiler on chosen steps and ranks."""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch

from data_tools.io.atomic_file import atomic_output, refuse_link
from qwen_megatron.train.run import Hook, Run, StepRecord

log = logging.getLogger(__name__)

FOLDER = "profile"


class ProfileHook(Hook):
    """Records chosen steps, a trace for each stretch of them; comes first among the hooks.

    A trace, `RUN/profile/steps_10-12_rank_0.json.gz`, opens in Perfetto (ui.perfetto.dev) or chrome://tracing. It shows
    operators, kernels and the step's timers. Recording starts before the other hooks of the step before and ends
    before those of the last step: a save of step 12 is not in it.

    Args:
        steps: Numbers of the steps.
        ranks: Ranks that record.
    """

    def __init__(self, steps: AbstractSet[int], ranks: AbstractSet[int]):
        self.steps = steps
        self.ranks = ranks
        self.profiler: torch.profiler.profile | None = None
        self.first = 0
        self.run: Run | None = None

    def on_start(self, run: Run) -> None:
        if run.groups.rank in self.ranks:
            self.run = run
            self.start_before(run.state.iteration + 1)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self.run is None:
            return
        if self.profiler is not None and record.step + 1 not in self.steps:
            self.finish(record.step)
        self.start_before(record.step + 1)

    def start_before(self, step: int) -> None:
        """Starts to record if `step` is chosen and nothing records yet."""
        if self.run is not None and self.profiler is None and step in self.steps:
            self.first = step
            self.run.timers.mark = torch.profiler.record_function
            self.profiler = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
            self.profiler.start()

    def finish(self, last: int) -> None:
        """Ends the record and writes its file."""
        run, profiler = self.run, self.profiler
        assert run is not None
        assert profiler is not None
        self.profiler = None
        run.timers.mark = None
        run.platform.synchronize()
        profiler.stop()
        folder = run.directory / FOLDER
        refuse_link(folder)
        folder.mkdir(exist_ok=True)
        path = folder / f"steps_{self.first}-{last}_rank_{run.groups.rank}.json.gz"
        write_trace(profiler, path)
        if run.is_main:
            log.info("wrote %s", path)

    def close(self) -> None:
        # Steps that were cut short, by the end of the run or by an error, are worth seeing.
        if self.profiler is not None and self.run is not None:
            self.finish(max(self.first, self.run.state.iteration))


def write_trace(profiler: torch.profiler.profile, path: Path) -> None:
    """Writes the trace whole or not at all."""
    # Kineto renames a file of its own to the name it is given, so it gets one outside of the run's folder.
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as content, atomic_output(path) as stream, gzip.open(stream, "wb") as compressed:
            shutil.copyfileobj(content, compressed)
