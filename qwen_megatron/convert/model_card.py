"""README.md of an exported model: what it was trained on, how, and how far."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.io.plain_text import printable
from data_tools.io.small_json import SmallFileError, read_rows
from qwen_megatron.checkpoint.state import CheckpointState
from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.name_map import Format

CARD = "README.md"
METRICS = "metrics.jsonl"
# Where a run lay and on how many machines says nothing of the model, and names folders of the user's.
SECTIONS = ("model", "optimizer", "training")


def model_card(checkpoint: Path, name: str, model: ModelConfig, hf_format: Format) -> str:
    """The card of a checkpoint's model, as Markdown.

    Args:
        checkpoint: An `iter_NNNNNNN` folder, beside which the run's metrics.jsonl may lie.
        name: Of the exported folder.
        model: Its architecture.
        hf_format: Format of the export.
    Raises:
        CheckpointError: if the checkpoint's state is missing or garbled.
    """
    state = CheckpointState.read(checkpoint)
    library = "---\nlibrary_name: transformers\n---\n\n" if hf_format is not Format.QWEN1 else ""
    origin = (
        f"A {hf_format.value} model of {count_parameters(model):,} parameters, made with qwen-megatron from the "
        f"checkpoint `{cell(checkpoint.name)}`."
    )
    parts = [f"# {cell(name)}", origin, *training(checkpoint, state)]
    return library + "\n\n".join(parts) + "\n"


def training(checkpoint: Path, state: CheckpointState) -> Iterator[str]:
    """Paragraphs and tables on how it was trained; of imported weights nothing is known."""
    counters = state.train_state
    if not counters.iteration:
        yield "Its weights were imported: this checkpoint says nothing of how they were trained."
        return
    rows = {"steps": f"{counters.iteration:,}", "tokens": f"{counters.consumed_tokens:,}"}
    rows |= {meaning: f"{loss:.4f}" for meaning, loss in losses(checkpoint.parent / METRICS, counters.iteration)}
    rows["commit"] = str(state.environment.get("commit"))
    yield "## Training\n\n" + table(("", ""), rows.items())
    if state.data:
        yield "## Data\n\n" + table(
            ("corpus", "samples", "fingerprint", "tokenizer"),
            (
                (Path(prefix).name, f"{entry['consumed_samples']:,}", entry["fingerprint"], entry["tokenizer"])
                for prefix, entry in state.data.items()
            ),
        )
    recipe: dict[str, Any] = {section: state.config.get(section, {}) for section in SECTIONS}
    yield f"## Recipe\n\n```json\n{printable(json.dumps(recipe, indent=2, sort_keys=True))}\n```"


def losses(metrics: Path, last_step: int) -> Iterator[tuple[str, float]]:
    """The last training and held-out loss up to a step, in nats per token, if the run's metrics are there."""
    latest: dict[str, float] = {}
    try:
        for _, row in read_rows(metrics):
            if row is None or not is_number(row.get("step")) or row["step"] > last_step:
                continue
            latest |= {key: row[key] for key in ("loss", "eval_loss") if is_number(row.get(key))}
    except SmallFileError:
        # The checkpoint may have been moved away from its run.
        return
    meanings: Mapping[str, str] = {"loss": "training loss", "eval_loss": "held-out loss"}
    yield from ((meanings[key], loss) for key, loss in latest.items())


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def table(head: tuple[str, ...], rows: Any) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)


def cell(value: object) -> str:
    """Text that stays in its cell and is no markup."""
    return printable(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("`", "'")
