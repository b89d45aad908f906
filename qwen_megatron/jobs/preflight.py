"""Everything that can be wrong with a run before torch is imported: settings, corpora, folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.settings.problems import Problems
from data_tools.settings.words import closest
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.load import Files, read_config
from qwen_megatron.config.resolve import ResolvedConfig, examine, resolved_config
from qwen_megatron.config.schema import Settings
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.data.pretraining.blending import largest_remainder
from qwen_megatron.data.pretraining.dataset import reserve_files
from qwen_megatron.errors import CheckpointError, ConfigError, DataError
from qwen_megatron.jobs.architecture import read_source, with_architecture
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.failure import refusal, settings_digest
from qwen_megatron.jobs.launcher import MachineError
from qwen_megatron.jobs.start import Start, planned_start

# Of every usual file system.
LONGEST_NAME_BYTES = 255


def prepare_config(files: Files, overrides: Sequence[str], world_size: int | None) -> ResolvedConfig:
    """Loads, resolves and checks settings alone, everything that is wrong at once.

    Args:
        files: YAML files, as for `load_config`.
        overrides: `section.key=value` texts.
        world_size: Processes a launcher started; None if there is none.
    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    settings, _ = with_source(read_config(files, overrides, problems), problems)
    sections = examine(settings, world_size, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return resolved_config(sections)


def prepare_start(
    files: Files, overrides: Sequence[str], world_size: int | None, *, with_sizes: bool = True
) -> tuple[ResolvedConfig, Start]:
    """Loads, resolves and checks a configuration and what a start needs besides: corpora, folders, checkpoints.

    Args:
        files, overrides, world_size: As of `prepare_config`.
        with_sizes: As of `planned_start`.
    Returns:
        The configuration, and what a start with it would do.
    Raises:
        ConfigError: with every problem; a MachineError if only files are wrong.
    """
    problems = Problems()
    settings, unread = with_source(read_config(files, overrides, problems), problems)
    sections = examine(settings, world_size, problems)
    paths = unread + check_paths(sections.checkpoint, problems)
    corpora = check_corpora(sections, problems)
    found = corpora + paths + check_packages(sections.logging)
    if problems.messages:
        raise ConfigError(problems.messages + found)
    config = resolved_config(sections)
    if not paths:
        found += filter(None, [refusal(Path(config.checkpoint.directory), settings_digest(config))])
        try:
            start = planned_start(config, None if corpora else open_blend(config).sources, with_sizes=with_sizes)
        except CheckpointError as error:
            raise ConfigError([str(error), *found]) from error
    if found:
        raise MachineError(found)
    return config, start


def with_source(settings: Settings, problems: Problems) -> tuple[Settings, list[str]]:
    """The settings with what `checkpoint.init_from` says of its model, and what keeps it from being read."""
    source = settings["checkpoint"].get("init_from")
    if source is None or not problems.usable("checkpoint.init_from") or not os.path.isdir(source):
        return settings, []
    try:
        return with_architecture(settings, read_source(Path(source))), []
    except CheckpointError as error:
        return settings, [f"checkpoint.init_from={source}: {error}"]


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
            corpora[prefix] = Corpus.open(prefix).sidecar
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
    problems = []
    trained_on = {corpus.fingerprint: prefix for prefix, corpus in corpora.items()}
    for prefix, corpus in held_out.items():
        if (same := trained_on.get(corpus.fingerprint)) is not None:
            problems.append(
                f"{key}={prefix}: holds the same tokens as {same}, which is trained on (data.blend); use another "
                "corpus, or data.eval_samples to hold out a part of it"
            )
        if (corpus.num_tokens - 1) // seq_length < 1:
            problems.append(
                f"{key}={prefix}: its {corpus.num_tokens} tokens must be more than training.seq_length({seq_length}); "
                "use more text"
            )
    return problems


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


def check_paths(checkpoint: CheckpointConfig, problems: Problems) -> list[str]:
    """What is wrong with the folders a run reads from and writes to."""
    found = []
    if problems.usable("checkpoint.directory"):
        found += check_directory(checkpoint.directory)
    sources = {"load": checkpoint.load, "init_from": checkpoint.init_from}
    words = {"load": ("auto", "none"), "init_from": ("null",)}
    for name, source in sources.items():
        if source is None or source in words[name] or not problems.usable(f"checkpoint.{name}"):
            continue
        if not os.path.isdir(source):
            looks_like_word = "/" not in source and source.lower() in ("auto", "none", "null", "latest")
            advice = f"use {closest(source, words[name])}" if looks_like_word else "name a checkpoint's folder"
            found.append(f"checkpoint.{name}={source}: no such folder; {advice}")
    return found


def check_packages(logging: LoggingConfig) -> list[str]:
    """Packages that are only needed if asked for."""
    if logging.wandb_project is None or find_spec("wandb") is not None:
        return []
    rule = "the package wandb is not installed; in the checkout run: pip install -e '.[wandb]', or leave the key out"
    return [f"logging.wandb_project={logging.wandb_project}: {rule}"]


def check_directory(directory: str) -> list[str]:
    """The run's folder exists or can be made, and can be written to."""
    key = f"checkpoint.directory={directory}"
    if not directory:
        return [f"{key}: is needed to train; use a folder for this run, such as runs/first"]
    if directory.startswith("~"):
        return [f"{key}: ~ is not expanded; use {Path(directory).expanduser()}"]
    if any(len(os.fsencode(part)) > LONGEST_NAME_BYTES for part in Path(directory).parts):
        return [f"{key}: a name in it is longer than {LONGEST_NAME_BYTES} bytes; use a shorter one"]
    existing = Path(directory).absolute()
    # os.path answers no for names that cannot be looked up; Path would raise.
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        return [f"{key}: {existing} is not a folder; use another path"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{key}: {existing} cannot be written to; use another folder or change its permissions"]
    return []
