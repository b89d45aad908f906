"""The chat corpora of supervised fine-tuning and of reward models, opened and checked without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.corpus.sidecar import DIALOGUES, PAIRS
from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.chat_blend import open_chat_corpora
from qwen_megatron.data.preference.dataset import HeldOutPairs, PreferencePairs, open_pairs
from qwen_megatron.data.sft.dataset import HeldOutDialogues, PackedDialogues, open_dialogues
from qwen_megatron.errors import DataError
from qwen_megatron.jobs.corpora import refuse_same_content

Made = TypeVar("Made")


def open_packed(config: ResolvedConfig) -> PackedDialogues:
    """The dialogues of `data.blend`, packed.

    Raises:
        DataError: if a corpus is missing, damaged, of another kind or too small.
    """
    return of_blend(config, open_dialogues)


def open_preferences(config: ResolvedConfig) -> PreferencePairs:
    """The pairs of `data.blend`.

    Raises:
        DataError: if a corpus is missing, damaged, of another kind or too small.
    """
    return of_blend(config, open_pairs)


def of_blend(config: ResolvedConfig, opened: Callable[..., Made]) -> Made:
    """What a function makes of `data.blend`."""
    return opened(
        config.data.blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=config.data.eval_samples,
        vocab_size=config.model.vocab_size,
    )


def held_out_dialogues(config: ResolvedConfig) -> dict[str, HeldOutDialogues]:
    """The corpora of `data.eval_blend`, packed, by name.

    Raises:
        DataError: if one is missing, damaged, of another kind or too small.
    """
    return held_out(config, DIALOGUES, HeldOutDialogues)


def held_out_pairs(config: ResolvedConfig) -> dict[str, HeldOutPairs]:
    """The corpora of `data.eval_blend`, by name.

    Raises:
        DataError: if one is missing, damaged, of another kind or too small.
    """
    return held_out(config, PAIRS, HeldOutPairs)


def held_out(config: ResolvedConfig, kind: str, made: Callable[..., Made]) -> dict[str, Made]:
    """Opens the corpora of `data.eval_blend` and makes a dataset of those of each name."""
    named, vocab_size = config.data.eval_blend, config.model.vocab_size
    return {
        name: made(
            open_chat_corpora(prefixes, kind, vocab_size),
            seq_length=config.training.seq_length,
            eval_samples=config.data.eval_blend_samples,
            vocab_size=vocab_size,
        )
        # Resolved it is a mapping, or empty.
        for name, prefixes in (named.items() if isinstance(named, Mapping) else ())
    }


def check_dialogues(
    sections: Sections, problems: Problems, kind: str, opened: Callable[..., BlendedSamples]
) -> list[str]:
    """What is wrong with the chat corpora of a job, as far as the settings about them are good.

    Args:
        sections, problems: The settings, and what is known to be wrong with them.
        kind: Which corpora the job takes.
        opened: Makes its dataset of `data.blend`.
    """
    data, usable = sections.data, problems.usable
    if not usable("data.blend", "data.eval_samples", "data.eval_blend"):
        return []
    if not data.blend:
        return [f"data.blend=[]: names no corpus of {kind}; make one with qwen-data chat and use its prefix: [PREFIX]"]
    vocab_size = sections.model.vocab_size if usable("model.vocab_size") else None
    found: list[str] = []
    trained_on = open_each("data.blend", data.blend, kind, vocab_size, found)
    named = data.eval_blend.items() if isinstance(data.eval_blend, Mapping) else ()
    for name, prefixes in named:
        key = f"data.eval_blend.{name}"
        evaluated = open_each(key, prefixes, kind, vocab_size, found)
        found += refuse_same_content(
            key,
            {prefix: corpus.fingerprint for prefix, corpus in evaluated.items()},
            {prefix: corpus.fingerprint for prefix, corpus in trained_on.items()},
        )
    if not found and usable("training.seq_length"):
        try:
            opened(
                data.blend,
                seq_length=sections.training.seq_length,
                seed=sections.training.seed,
                eval_samples=data.eval_samples,
                vocab_size=vocab_size,
            )
        except DataError as error:
            found.append(f"data.blend: {error}")
    return found


def open_each(
    key: str, prefixes: Iterable[str], kind: str, vocab_size: int | None, problems: list[str]
) -> dict[str, ChatCorpus]:
    """The corpora that open, by prefix; what is wrong with the others goes to `problems`."""
    corpora: dict[str, ChatCorpus] = {}
    for prefix in prefixes:
        try:
            corpora |= open_chat_corpora([prefix], kind, vocab_size)
        except DataError as error:
            problems.append(f"{key}={prefix}: {error}")
    return corpora
