"""Section `checkpoint`: the run's folder, and what a run starts from."""

from __future__ import annotations

from data_tools.settings.records import Count, Positive, record


@record
class CheckpointConfig:
    """Section `checkpoint`."""

    directory: str = ""
    """The run's folder: checkpoints, metrics.jsonl, TensorBoard files, resolved configuration. Needed to train."""
    save_interval: Count = 1000
    """Optimizer steps between checkpoints; the last step is always saved."""
    save_interval_minutes: Positive | None = None
    """Minutes from one checkpoint to the next one at most. Default: by steps alone."""
    async_save: bool = True
    """Copy what is saved into memory and write it while training goes on: each process needs as much memory again
    as its file has bytes. `false`: training waits for the disk, no memory is needed."""
    keep_last: Count | None = None
    """Newest whole checkpoints that are kept, older ones are removed. Default: all."""
    keep_every: Count | None = None
    """Checkpoints at multiples of this step are kept for good, whatever `keep_last` says."""
    load: str = "auto"
    """`auto` goes on from the newest good checkpoint in `directory`, if there is one; a path goes on from that
    checkpoint; `none` starts anew."""
    allow_changes: tuple[str, ...] = ()
    """Settings (`section.key`) that may differ from those of the checkpoint a run goes on from; the new values are
    used. Any other difference that training depends on is refused."""
    allow_nonfinite: bool = False
    """Load weights, masters or moments that hold NaN or infinity, to look into them. Such a state is not saved
    again."""
    init_from: str | None = None
    """Checkpoint or Hugging Face folder whose weights, and nothing else, a new run starts from. Default: weights
    drawn from `training.seed`."""
