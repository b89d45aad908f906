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
    load: str = field(
        default="auto",
        metadata=about(
            "`auto` goes on from the newest good checkpoint in `directory`, if there is one; a path goes on from that "
            "checkpoint; `none` starts anew."
        ),
    )
    init_from: str | None = field(
        default=None,
        metadata=about(
            "Checkpoint or Hugging Face folder whose weights, and nothing else, a new run starts from. Default: "
            "weights drawn from `training.seed`."
        ),
    )
