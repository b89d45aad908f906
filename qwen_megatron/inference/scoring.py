"""How likely given continuations are, and whether greedy search would have found them.

Legend: b rows, s tokens of a row, n tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen_megatron.inference.grouping import alike
from qwen_megatron.inference.staged_model import StagedModel

# Tokens that are run at once, and tokens whose logits are held at once (155 MB in Qwen's vocabulary).
RUN_TOKENS = 4096
LOGIT_TOKENS = 256

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A continuation under the model.

    Attributes:
        log_probability: Sum over its tokens, in nats.
        is_greedy: Whether each token is the most likely one.
        num_tokens: Tokens of the continuation.
    """

    log_probability: float
    is_greedy: bool
    num_tokens: int


@torch.inference_mode()
def score_rows(staged: StagedModel, rows: Sequence[tuple[Ids, Ids]]) -> list[Score]:
    """The score of each (context, continuation), in their order. Collective over the ranks of a replica.

    Rows of about the same length are run together, padded on the right. The last token of a row predicts nothing and is
    not run; one context that many continuations follow is run with each of them.
    """
    found: dict[int, Score] = {}
    for places in alike([len(context) + len(continuation) - 1 for context, continuation in rows], RUN_TOKENS):
        chosen = [rows[place] for place in places]
        longest = max(len(context) + len(continuation) - 1 for context, continuation in chosen)
        tokens_bs = torch.zeros(len(chosen), longest, dtype=torch.int64)
        for number, (context, continuation) in enumerate(chosen):
            ids = [*context, *continuation][: len(context) + len(continuation) - 1]
            tokens_bs[number, : len(ids)] = torch.tensor(ids)
        hidden_bsh = staged.hidden(tokens_bs.to(staged.device))
        values = None if hidden_bsh is None else read_off(staged, hidden_bsh, chosen)
        shared = staged.from_last_stage(values, (len(chosen), 2))
        for place, (log_probability, is_greedy), (_, continuation) in zip(places, shared.tolist(), chosen, strict=True):
            found[place] = Score(
                log_probability=log_probability, is_greedy=is_greedy == 1.0, num_tokens=len(continuation)
            )
    return [found[place] for place in range(len(rows))]


def read_off(staged: StagedModel, hidden_bsh: torch.Tensor, rows: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
    """Sum of log-probabilities and whether all were the most likely, fp64 [b, 2], on the CPU."""
    places = [
        (number, len(context) - 1 + step, label)
        for number, (context, continuation) in enumerate(rows)
        for step, label in enumerate(continuation)
    ]
    result = torch.zeros(len(rows), 2, dtype=torch.float64)
    result[:, 1] = 1.0
    for start in range(0, len(places), LOGIT_TOKENS):
        row_n, place_n, label_n = (
            torch.tensor(column, device=hidden_bsh.device)
            for column in zip(*places[start : start + LOGIT_TOKENS], strict=True)
        )
        logits_nv = staged.logits(hidden_bsh[row_n, place_n])
        labels_n = logits_nv.gather(1, label_n[:, None])[:, 0]
        log_probabilities_n = (labels_n - logits_nv.logsumexp(dim=1)).double().cpu()
        greedy_n = (logits_nv.argmax(dim=1) == label_n).double().cpu()
        row_n = row_n.cpu()
        result[:, 0].index_add_(0, row_n, log_probabilities_n)
        result[:, 1].scatter_reduce_(0, row_n, greedy_n, "amin")
    return result
