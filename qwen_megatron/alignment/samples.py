"""samples.jsonl in the run's folder: a few responses every so many steps, for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from data_tools.io.atomic_file import append_line, refuse_link
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import END_INDEX
from qwen_megatron.inference.vocabulary import Vocabulary
from qwen_megatron.train.hooks.metrics import drop_rows_after
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.writing import writing

SAMPLES = "samples.jsonl"


class SamplesHook(Hook):
    """Writes the first responses of rank 0's replica: as text where the tokens are known, as ids where not.

    Args:
        rows: Gives the rows of the step, as `collecting.judged` makes them.
        interval: Steps.
        count: Responses.
        vocabulary: Ids to text; None where the tokens are not known.
    """

    def __init__(self, rows: Callable[[], Batch | None], *, interval: int, count: int, vocabulary: Vocabulary | None):
        self.rows = rows
        self.interval = interval
        self.count = count
        self.vocabulary = vocabulary

    def on_start(self, run: Run) -> None:
        if run.is_main:
            path = run.directory / SAMPLES
            refuse_link(path)
            with writing(path):
                # Of steps that are about to be taken again.
                drop_rows_after(path, run.state.iteration)

    def on_step(self, run: Run, record: StepRecord) -> None:
        rows = self.rows()
        if run.is_main and rows is not None and (record.step % self.interval == 0 or record.step == run.last_step):
            path = run.directory / SAMPLES
            with writing(path):
                for sample in samples_of(rows, self.count, self.vocabulary):
                    append_line(path, json.dumps({"step": record.step, **sample}, ensure_ascii=False))


def samples_of(rows: Batch, count: int, vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """The first rows: query, response, score, divergence, and whether the response ended its turn."""

    def shown(ids: Sequence[int]) -> Any:
        return list(ids) if vocabulary is None else vocabulary.decode(ids)

    found = []
    for row in range(min(count, len(rows.tokens_bs))):
        end, actions = int(rows.extras[END_INDEX][row]), int(rows.loss_mask_bs[row].sum())
        tokens = rows.tokens_bs[row, : end + 1].tolist()
        split = len(tokens) - actions
        found.append(
            {
                "query": shown(tokens[:split]),
                "response": shown(tokens[split:]),
                "score": float(rows.extras["score_b"][row]),
                "kl": float(rows.extras["kl_bs"][row].sum()),
                "finished": bool(rows.extras["finished_b"][row]),
            }
        )
    return found
