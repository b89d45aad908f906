"""Scores of continuations, of which many share a text: the answers to one question are read off one run of it.

Legend: b texts, s tokens of a text, n tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qwen_megatron.inference.grouping import alike
from qwen_megatron.inference.scoring import LOGIT_TOKENS, RUN_TOKENS, Score
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.model.attention_context import AttentionContext

Ids = tuple[int, ...]
# Number of a text among those that are run together, place of a token in it, the token that follows.
Place = tuple[int, int, int]


@torch.inference_mode()
def score_shared(
    staged: StagedModel, rows: Sequence[tuple[Ids, Ids]], advance: Callable[[int], None] = lambda amount: None
) -> list[Score]:
    """The score of each (context, continuation), in their order. Collective over the ranks of a replica.

    The last token of a row predicts nothing and is not run, so rows that differ in it alone are one text: choices of
    one token each cost one run of their question. Texts of about the same length are run together, padded on the
    right.

    Args:
        staged: The model.
        rows: Neither part is empty.
        advance: Told how many rows are done.
    """
    rows_of: dict[Ids, list[int]] = {}
    for number, (context, new) in enumerate(rows):
        rows_of.setdefault((*context, *new[:-1]), []).append(number)
    texts = list(rows_of)
    found: dict[int, Score] = {}
    for chosen in alike([len(text) for text in texts], RUN_TOKENS):
        together = [texts[place] for place in chosen]
        numbers = [(at, number) for at, text in enumerate(together) for number in rows_of[text]]
        hidden_bsh = run(staged, together)
        values = None if hidden_bsh is None else read_off(staged, hidden_bsh, [(at, *rows[n]) for at, n in numbers])
        shared = staged.from_last_stage(values, (len(numbers), 2)).tolist()
        for (_, number), (log_probability, is_greedy) in zip(numbers, shared, strict=True):
            size = len(rows[number][1])
            found[number] = Score(log_probability=log_probability, is_greedy=is_greedy == 1.0, num_tokens=size)
        advance(len(numbers))
    return [found[number] for number in range(len(rows))]


def run(staged: StagedModel, texts: Sequence[Ids]) -> torch.Tensor | None:
    """Hidden states of texts, [b, s, h] on the last stage; dynamic NTK sees each at its own length."""
    tokens_bs = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for number, text in enumerate(texts):
        tokens_bs[number, : len(text)] = torch.tensor(text)
    context = AttentionContext(text_lengths=tuple(map(len, texts)))
    return staged.hidden(tokens_bs.to(staged.device), context)


def read_off(staged: StagedModel, hidden_bsh: torch.Tensor, rows: Sequence[tuple[int, Ids, Ids]]) -> torch.Tensor:
    """Sum of log-probabilities and whether all were the most likely, fp64 [rows, 2], on the CPU.

    Args:
        staged: The model.
        hidden_bsh: Of the texts that were run together.
        rows: (number of the text, context, continuation).
    """
    # Logits of a place are computed once, whatever number of rows ask for them.
    labels: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, (text, context, new) in enumerate(rows):
        for step, label in enumerate(new):
            labels.setdefault((text, len(context) - 1 + step), []).append((row, label))
    result = torch.zeros(len(rows), 2, dtype=torch.float64)
    result[:, 1] = 1.0
    places = list(labels)
    for start in range(0, len(places), LOGIT_TOKENS):
        some = places[start : start + LOGIT_TOKENS]
        text_n, place_n = torch.tensor(some, device=hidden_bsh.device).unbind(dim=1)
        logits_nv = staged.logits(hidden_bsh[text_n, place_n])
        asked = [(at, row, label) for at, place in enumerate(some) for row, label in labels[place]]
        at_n, row_n, label_n = torch.tensor(asked, device=logits_nv.device).unbind(dim=1)
        totals_n, best_n = logits_nv.logsumexp(dim=1), logits_nv.argmax(dim=1)
        log_probabilities_n = (logits_nv[at_n, label_n] - totals_n[at_n]).double().cpu()
        result[:, 0].index_add_(0, row_n.cpu(), log_probabilities_n)
        result[:, 1].scatter_reduce_(0, row_n.cpu(), (best_n[at_n] == label_n).double().cpu(), "amin")
    return result
