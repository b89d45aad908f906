"""Weights of a blend: by source, epochs capped, a given share for instruction data; the file feeds `data.blend`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One corpus of a mixture.

    Attributes:
        prefix: path of the corpus without suffix.
        tokens: tokens in it.
        share: part of the training tokens.
        epochs: how often its tokens are seen.
    """

    prefix: str
    tokens: int
    share: float
    epochs: float


def mix(
    tokens: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    train_tokens: int | None = None,
    max_epochs: float = 4.0,
    instruction: Sequence[str] = (),
    instruction_share: float = 0.0,
) -> dict[str, float]:
    """How many tokens of each source training sees.

    With ``train_tokens`` and without caps the share of a source is weight x tokens over their sum: a weight is how
    often a token of this source is seen compared with one of weight 1 (selective up-sampling). A source that would be
    seen more than ``max_epochs`` times is held there, and the others share what that leaves in their proportions.
    Without ``train_tokens`` a weight is a number of epochs, held at ``max_epochs``; instruction data comes on top.

    Args:
        tokens: source -> tokens in its corpus.
        weights: source -> weight; 1 if not named, 0 leaves it out.
        train_tokens: tokens of the training run; all that the weights ask for if None.
        max_epochs: cap.
        instruction: sources that together take ``instruction_share``, however large they are, up to the cap.
        instruction_share: 0 to 1, of all tokens seen.
    Returns:
        source -> tokens seen, those of every epoch counted; sources that are left out are not named.
    Raises:
        DataError: an unknown source, or the caps leave fewer than ``train_tokens``.
    """
    unknown = sorted((set(weights) | set(instruction)) - set(tokens))
    if unknown:
        raise DataError(f"mixture: {', '.join(unknown)}: no such source; there are {', '.join(sorted(tokens))}")
    wanted = {name: weights.get(name, 1.0) * count for name, count in tokens.items()}
    wanted = {name: amount for name, amount in wanted.items() if amount > 0}
    if not wanted:
        raise DataError("mixture: every source has weight 0 or no tokens; nothing is left to train on")
    special = {name: wanted[name] for name in instruction if name in wanted}
    others = {name: amount for name, amount in wanted.items() if name not in special}
    _check_instruction(special, others, instruction_share)
    if train_tokens is None:
        # A weight above max_epochs asks for more than the cap even in a run that takes each token once.
        seen = {name: min(amount, max_epochs * tokens[name]) for name, amount in others.items()}
        budget = sum(seen.values()) * instruction_share / (1 - instruction_share)
        seen.update(_fill(special, tokens, budget, max_epochs))
    else:
        seen = _fill(special, tokens, instruction_share * train_tokens, max_epochs)
        seen.update(_fill(others, tokens, train_tokens - sum(seen.values()), max_epochs))
        filled = sum(seen.values())
        if filled < 0.999 * train_tokens:
            raise DataError(
                f"mixture: at most {filled:,.0f} tokens with max_epochs={max_epochs:g}, but train_tokens is "
                f"{train_tokens:,}; train for less, add data or raise max_epochs"
            )
    return {name: amount for name, amount in sorted(seen.items()) if amount > 0}


def _check_instruction(special: Mapping[str, float], others: Mapping[str, float], instruction_share: float) -> None:
    if special and not instruction_share:
        raise DataError(f"mixture: instruction={', '.join(special)} but no instruction_share; say how much they take")
    if instruction_share and not special:
        raise DataError(f"mixture: instruction_share={instruction_share} but no instruction source has tokens")
    if instruction_share and not others:
        raise DataError(
            f"mixture: instruction_share={instruction_share}, but no other source has tokens; leave instruction and "
            "instruction_share out, or add a source"
        )


def _fill(wanted: Mapping[str, float], tokens: Mapping[str, int], budget: float, max_epochs: float) -> dict[str, float]:
    """Divides ``budget`` tokens in proportion to ``wanted``, none above its cap."""
    amounts: dict[str, float] = {}
    free = dict(wanted)
    negligible = 1e-9 * budget
    while free and budget > negligible:
        scale = budget / sum(free.values())
        capped = [name for name, amount in free.items() if amount * scale > max_epochs * tokens[name]]
        if not capped:
            amounts.update({name: amount * scale for name, amount in free.items()})
            break
        for name in capped:
            amounts[name] = max_epochs * tokens[name]
            budget -= amounts[name]
            del free[name]
    return amounts


def ingredients(prefixes: Mapping[str, str], tokens: Mapping[str, int], seen: Mapping[str, float]) -> list[Ingredient]:
    """What `mix` gave, with paths, shares and epochs: all of the one total that it reckoned with."""
    total = sum(seen.values())
    return [
        Ingredient(prefix=prefixes[name], tokens=tokens[name], share=amount / total, epochs=amount / tokens[name])
        for name, amount in seen.items()
    ]


def write_mixture(path: Path, parts: Sequence[Ingredient], notes: Sequence[str] = ()) -> None:
    """Writes ``path``: YAML that training takes with its `data.blend`, the numbers beside it and notes as comments."""
    lines = ["# prefix: share of the training tokens; made by qwen-data run", *(f"# {note}" for note in notes)]
    lines += ["data:", "  blend:"]
    for part in parts:
        prefix = orjson.dumps(part.prefix).decode("utf-8")  # A JSON string is a YAML string.
        lines.append(f"    {prefix}: {part.share:.9f}  # {part.tokens} tokens, {part.epochs:.3f} epochs")
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))
