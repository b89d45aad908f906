"""How likely given continuations are, and whether greedy search would have found them.

A context that several continuations share is run once: a question, whatever number of answers it has.

Legend: b rows, s tokens of a row, n tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from qwen_megatron.inference.cache import KeyValueCache
from qwen_megatron.inference.grouping import alike
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.model.attention import QwenCoreAttention
from qwen_megatron.model.attention_context import AttentionContext

Ids = tuple[int, ...]

# Tokens that are run at once, and tokens whose logits are held at once (155 MB in Qwen's vocabulary).
RUN_TOKENS = 4096
LOGIT_TOKENS = 256


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


@dataclass
class Stem:
    """Tokens that are run once, and what is run after them.

    Attributes:
        tokens: Of a context; with its continuation where it has but one.
        tails: Continuations without their last token, which predicts nothing -> number of the tail; none is empty.
        rows: (number of the row, place of its first label's predecessor, its continuation, its tail or None).
    """

    tokens: Ids
    tails: dict[Ids, int] = field(default_factory=dict)
    rows: list[tuple[int, int, Ids, Ids | None]] = field(default_factory=list)


@torch.inference_mode()
def score_rows(
    staged: StagedModel, rows: Sequence[tuple[Ids, Ids]], advance: Callable[[int], None] = lambda amount: None
) -> list[Score]:
    """The score of each (context, continuation), in their order. Collective over the ranks of a replica.

    Contexts of about the same length are run together, padded on the right, into a key/value cache; what follows them
    is run after it.

    Args:
        staged: The model.
        rows: Neither part is empty.
        advance: Told how many rows are done.
    """
    stems = stems_of(rows, shares=not stretches(staged, max((len(a) + len(b) for a, b in rows), default=0)))
    found: dict[int, Score] = {}
    for chosen in alike([len(stem.tokens) for stem in stems], RUN_TOKENS):
        together = [stems[place] for place in chosen]
        vectors, labels = run(staged, together)
        numbers = [number for stem in together for number, *_ in stem.rows]
        values = None if vectors is None else read_off(staged, vectors, labels, numbers)
        # All ranks of the last stage hold the same values.
        own = values if staged.groups.tp.rank() == 0 else None
        shared = staged.sum_over_ranks(own, (len(numbers), 2)).tolist()
        for number, (log_probability, is_greedy) in zip(numbers, shared, strict=True):
            size = len(rows[number][1])
            found[number] = Score(log_probability=log_probability, is_greedy=is_greedy == 1.0, num_tokens=size)
        advance(len(numbers))
    return [found[number] for number in range(len(rows))]


def stretches(staged: StagedModel, longest: int) -> bool:
    """Whether the rotary base hangs on the length of a whole text: then contexts of several texts are not alike."""
    cores = (module for module in staged.model.modules() if isinstance(module, QwenCoreAttention))
    return any(core.evaluated.use_dynamic_ntk and longest > core.evaluated.native_length for core in cores)


def stems_of(rows: Sequence[tuple[Ids, Ids]], *, shares: bool) -> list[Stem]:
    """What is run for some rows.

    Args:
        rows: (context, continuation).
        shares: Whether rows of one context may share its run.
    """
    families: dict[Ids, list[int]] = {}
    for number, (context, new) in enumerate(rows):
        families.setdefault(context if shares else (*context, *new[:-1]), []).append(number)
    stems = []
    for numbers in families.values():
        context = rows[numbers[0]][0]
        tails = {rows[number][1][:-1] for number in numbers}
        if not shares or len(tails) == 1:
            whole = Stem((*context, *rows[numbers[0]][1][:-1]))
            whole.rows = [(number, len(rows[number][0]) - 1, rows[number][1], None) for number in numbers]
            stems.append(whole)
            continue
        stem = Stem(context)
        for number in numbers:
            new = rows[number][1]
            if new[:-1]:
                stem.tails.setdefault(new[:-1], len(stem.tails))
            stem.rows.append((number, len(context) - 1, new, new[:-1] or None))
        stems.append(stem)
    return stems


# (place among the vectors, number of the row, token that follows)
Label = tuple[int, int, int]


def run(staged: StagedModel, stems: Sequence[Stem]) -> tuple[torch.Tensor | None, list[Label]]:
    """Hidden states of all tokens that predict something, [n, h] on the last stage, and what they predict."""
    # What nothing follows needs no cache: that of a long text is large.
    cache = KeyValueCache() if any(stem.tails for stem in stems) else None
    context = AttentionContext(cache=cache, text_lengths=tuple(len(stem.tokens) for stem in stems))
    hidden_bsh = staged.hidden(padded([stem.tokens for stem in stems]).to(staged.device), context)
    places: dict[tuple[int, int], int] = {}
    tail_starts: dict[tuple[int, int], int] = {}
    labels: list[Label] = []
    for at, stem in enumerate(stems):
        for number, first, new, tail in stem.rows:
            steps = new if tail is None else new[:1]
            for step, label in enumerate(steps):
                place = places.setdefault((at, first + step), len(places))
                labels.append((place, number, label))
    vectors = [] if hidden_bsh is None else [gathered(hidden_bsh, list(places))]
    count = len(places)
    for rows, hidden_tsh in run_tails(staged, stems, cache) if cache else ():
        asked = [(row, place) for row, (_, tail) in enumerate(rows) for place in range(len(tail))]
        for row, (at, tail) in enumerate(rows):
            tail_starts[at, stems[at].tails[tail]] = count + sum(len(other) for _, other in rows[:row])
        count += len(asked)
        vectors += [] if hidden_tsh is None else [gathered(hidden_tsh, asked)]
    for at, stem in enumerate(stems):
        for number, _, new, tail in stem.rows:
            if tail is not None:
                start = tail_starts[at, stem.tails[tail]]
                labels += [(start + step, number, label) for step, label in enumerate(new[1:])]
    return torch.cat(vectors) if vectors else None, labels


def run_tails(
    staged: StagedModel, stems: Sequence[Stem], cache: KeyValueCache
) -> Iterator[tuple[list[tuple[int, Ids]], torch.Tensor | None]]:
    """Runs what follows the stems, each after a copy of its stem's keys and values.

    Yields:
        (stem, tail) of the rows that were run together, and their hidden states [b, s, h].
    """
    tails = [(at, tail) for at, stem in enumerate(stems) for tail in stem.tails]
    for chosen in alike([len(stems[at].tokens) + len(tail) for at, tail in tails], RUN_TOKENS):
        rows = [tails[place] for place in chosen]
        sources = torch.tensor([at for at, _ in rows], device=staged.device)
        copied = KeyValueCache()
        copied.layers = {layer: (keys[sources], values[sources]) for layer, (keys, values) in cache.layers.items()}
        offsets = tuple(len(stems[at].tokens) for at, _ in rows)
        lengths = tuple(offset + len(tail) for offset, (_, tail) in zip(offsets, rows, strict=True))
        context = AttentionContext(cache=copied, offsets=offsets, text_lengths=lengths)
        yield rows, staged.hidden(padded([tail for _, tail in rows]).to(staged.device), context)


def padded(texts: Sequence[Ids]) -> torch.Tensor:
    """[b, s] int64, shorter rows padded on the right: what comes later is seen by nothing before."""
    tokens_bs = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for number, text in enumerate(texts):
        tokens_bs[number, : len(text)] = torch.tensor(text)
    return tokens_bs


def gathered(hidden_bsh: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[n, h], of (row, token) each."""
    row_n, place_n = torch.tensor(places, device=hidden_bsh.device).unbind(dim=1)
    return hidden_bsh[row_n, place_n]


def read_off(
    staged: StagedModel, vectors_nh: torch.Tensor, labels: Sequence[Label], numbers: Sequence[int]
) -> torch.Tensor:
    """Sum of log-probabilities and whether all were the most likely, fp64 [rows, 2], on the CPU.

    Args:
        staged: The model.
        vectors_nh: Hidden states; the logits of each are computed once.
        labels: What they predict.
        numbers: Of the rows, in the order of the result.
    """
    result_of = {number: at for at, number in enumerate(numbers)}
    result = torch.zeros(len(numbers), 2, dtype=torch.float64)
    result[:, 1] = 1.0
    ordered = sorted(labels)
    for start in range(0, len(vectors_nh), LOGIT_TOKENS):
        logits_nv = staged.logits(vectors_nh[start : start + LOGIT_TOKENS])
        first, last = (bisect_left(ordered, (edge, -1, -1)) for edge in (start, start + LOGIT_TOKENS))
        asked = [(place - start, result_of[number], label) for place, number, label in ordered[first:last]]
        place_n, row_n, label_n = torch.tensor(asked, device=logits_nv.device).unbind(dim=1)
        totals_n, best_n = logits_nv.logsumexp(dim=1), logits_nv.argmax(dim=1)
        log_probabilities_n = (logits_nv[place_n, label_n] - totals_n[place_n]).double().cpu()
        result[:, 0].index_add_(0, row_n.cpu(), log_probabilities_n)
        result[:, 1].scatter_reduce_(0, row_n.cpu(), (best_n[place_n] == label_n).double().cpu(), "amin")
    return result
