"""Section `checkpoint`: the run's folder, and what a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Section `checkpoint`."""

    directory: str = field(
        default="",
        metadata=about(
            "The run's folder: checkpoints, metrics.jsonl, TensorBoard files, resolved configuration. Needed to train."
        ),
    )
    save_interval: int = field(
        default=1000, metadata=count("Optimizer steps between checkpoints; the last step is always saved.")
    )
    save_interval_minutes: float | None = field(
        default=None,
        metadata=about("Minutes from one checkpoint to the next one at most. Default: by steps alone.", above=0.0),
    )
    async_save: bool = field(
        default=True,
        metadata=about(
            "Copy what is saved into memory and write it while training goes on: each process needs as much memory "
            "again as its file has bytes. `false`: training waits for the disk, no memory is needed."
        ),
    )
    keep_last: int | None = field(
        default=None, metadata=count("Newest whole checkpoints that are kept, older ones are removed. Default: all.")
    )
    keep_every: int | None = field(
        default=None,
        metadata=count("Checkpoints at multiples of this step are kept for good, whatever `keep_last` says."),
    )
    load: str = field(
        default="auto",
        metadata=about(
            "`auto` goes on from the newest good checkpoint in `directory`, if there is one; a path goes on from that "
            "checkpoint; `none` starts anew."
        ),
    )
    allow_changes: tuple[str, ...] = field(
        default_factory=tuple,
        metadata=about(
            "Settings (`section.key`) that may differ from those of the checkpoint a run goes on from; the new values "
            "are used. Any other difference that training depends on is refused."
        ),
    )
    allow_nonfinite: bool = field(
        default=False,
        metadata=about(
            "Load weights, masters or moments that hold NaN or infinity, to look into them. Such a state is not saved "
            "again."
        ),
    )
    init_from: str | None = field(
        default=None,
        metadata=about(
            "Checkpoint or Hugging Face folder whose weights, and nothing else, a new run starts from. Default: "
            "weights drawn from `training.seed`."
        ),
    )
