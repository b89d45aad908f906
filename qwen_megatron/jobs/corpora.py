"""What is wrong with the corpora of pretraining, found without reading a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.data.pretraining.blending import largest_remainder
from qwen_megatron.data.pretraining.dataset import reserve_files
from qwen_megatron.errors import DataError


def check_corpora(sections: Sections, problems: Problems) -> list[str]:
    """What is wrong with the corpora, as far as the settings about them are good."""
    if not problems.usable("data.blend", "data.eval_samples", "data.eval_blend"):
        return []
    usable = problems.usable
    return check_data(
        sections.data,
        seq_length=sections.training.seq_length if usable("training.seq_length") else None,
        vocab_size=sections.model.vocab_size if usable("model.vocab_size") else None,
    )


def check_data(data: DataConfig, *, seq_length: int | None, vocab_size: int | None) -> list[str]:
    """What is wrong with the corpora; reads no token.

    Args:
        data: Resolved section.
        seq_length: Context trained on, in tokens; None if it is not known, then sizes are not checked.
        vocab_size: Rows of the embedding; None if it is not known, then ids are not checked.
    Returns:
        Problems, empty if training can open and blend the corpora.
    """
    if not data.blend:
        return ["data.blend=[]: names no corpus; make one with qwen-data tokenize and use its prefix: [PREFIX]"]
    problems: list[str] = []
    try:
        reserve_files(len(data.blend))
    except DataError as error:
        problems.append(str(error))
    corpora = sidecars("data.blend", data.blend, problems)
    held_out = held_out_corpora(data, problems)
    if seq_length is not None:
        for key, others in held_out.items():
            problems += check_held_out(key, others, corpora, seq_length)
    everything = corpora | {prefix: corpus for others in held_out.values() for prefix, corpus in others.items()}
    tokenizers = {name: corpus.tokenizer for name, corpus in everything.items() if corpus.tokenizer}
    problems += differing("tokenizers", tokenizers)
    problems += differing("end-of-document tokens", {name: one.end_of_document for name, one in everything.items()})
    for prefix, corpus in corpora.items():
        if vocab_size is not None and corpus.end_of_document >= vocab_size:
            problems.append(
                f"data.blend={prefix}: its end-of-document token {corpus.end_of_document} must be below "
                f"model.vocab_size({vocab_size}); use model.vocab_size={corpus.end_of_document + 1} or more"
            )
    if len(corpora) == len(data.blend) and seq_length is not None:
        problems += check_sizes(data, {prefix: corpus.num_tokens for prefix, corpus in corpora.items()}, seq_length)
    return problems


def sidecars(key: str, prefixes: Iterable[str], problems: list[str]) -> dict[str, Sidecar]:
    """Of the corpora that open, by prefix; what is wrong with the others goes to `problems`."""
    corpora: dict[str, Sidecar] = {}
    for prefix in prefixes:
        try:
            # Not kept open: there may be more corpora than files may be open.
            sidecar = Corpus.open(prefix).sidecar
            if sidecar.chat is not None:
                kind = sidecar.chat.kind
                raise DataError(f"is a corpus of {kind}, not of text; pretraining takes those of qwen-data tokenize")
            corpora[prefix] = sidecar
        except DataError as error:
            problems.append(f"{key}={prefix}: {error}")
    return corpora


def held_out_corpora(data: DataConfig, problems: list[str]) -> dict[str, dict[str, Sidecar]]:
    """The corpora of `data.eval_blend` that open, by the setting that names them."""
    named = data.eval_blend.items() if isinstance(data.eval_blend, Mapping) else ()
    keys = {f"data.eval_blend.{name}": prefixes for name, prefixes in named}
    return {key: sidecars(key, prefixes, problems) for key, prefixes in keys.items()}


def check_held_out(
    key: str, held_out: Mapping[str, Sidecar], corpora: Mapping[str, Sidecar], seq_length: int
) -> list[str]:
    """Corpora that are evaluated on hold a sample each and are not trained on under another name."""
    problems = refuse_same_content(
        key,
        {prefix: corpus.fingerprint for prefix, corpus in held_out.items()},
        {prefix: corpus.fingerprint for prefix, corpus in corpora.items()},
    )
    for prefix, corpus in held_out.items():
        if (corpus.num_tokens - 1) // seq_length < 1:
            problems.append(
                f"{key}={prefix}: its {corpus.num_tokens} tokens must be more than training.seq_length({seq_length}); "
                "use more text"
            )
    return problems


def refuse_same_content(key: str, held_out: Mapping[str, str], trained_on: Mapping[str, str]) -> list[str]:
    """A problem for each corpus that is evaluated on and, under another name, trained on.

    Args:
        key: Setting that names the corpora of the evaluation.
        held_out, trained_on: Fingerprints by prefix.
    """
    names = {fingerprint: prefix for prefix, fingerprint in trained_on.items()}
    return [
        f"{key}={prefix}: holds the same tokens as {names[fingerprint]}, which is trained on (data.blend); use another "
        "corpus, or data.eval_samples to hold out a part of it"
        for prefix, fingerprint in held_out.items()
        if fingerprint in names
    ]


def differing(what: str, found: Mapping[str, object]) -> list[str]:
    """A problem if corpora that must agree do not."""
    if len(set(found.values())) <= 1:
        return []
    (first, expected), *rest = found.items()
    other = next(prefix for prefix, value in rest if value != expected)
    rule = f"corpora must not differ in {what}: {first} has {expected}, {other} has {found[other]}"
    return [f"data.blend: {rule}; tokenize them again with one tokenizer"]


def check_sizes(data: DataConfig, num_tokens: Mapping[str, int], seq_length: int) -> list[str]:
    """Every corpus keeps at least one sample to train on after what is held out."""
    weights = list(data.blend.values()) if isinstance(data.blend, Mapping) else list(num_tokens.values())
    problems = [
        f"data.blend={prefix}: holds no tokens; leave it out" for prefix, count in num_tokens.items() if not count
    ]
    if problems:
        return problems
    held_out: Iterable[int] = [0] * len(weights)
    if data.eval_samples:
        held_out = largest_remainder(weights, max(data.eval_samples, len(weights)))
    for (prefix, count), held in zip(num_tokens.items(), held_out, strict=True):
        samples = (count - 1) // seq_length
        if samples - held < 1:
            problems.append(
                f"data.blend={prefix}: its {count} tokens are {samples} samples of training.seq_length({seq_length}), "
                f"but {held} are held out for evaluation and 1 must be left; use more text, or lower "
                "data.eval_samples or training.seq_length"
            )
    return problems
