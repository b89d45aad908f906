"""The Python interface: what the commands do, for notebooks and scripts, in one process.

    from qwen_megatron import api

    config = api.load("recipe:demo", "parallel.world_size=1", ..., "checkpoint.directory=runs/first")
    api.train(config, on_step=lambda record: print(record.step, record.loss))
    api.export("runs/first", "exports/first")
    print(api.generate("exports/first", "def main("))

Importing it loads neither torch nor Megatron-Core; each function imports what it needs. Errors are those of
`qwen_megatron.errors` and `data_tools.errors`, with the messages of the commands.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.corpus.reader import Corpus
from qwen_megatron.config.load import split_settings
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.table import JOBS
from qwen_megatron.jobs.launcher import settle_environment
from qwen_megatron.jobs.preflight import prepare_start
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    from qwen_megatron.train.run import StepRecord


def load(*settings: str | Path, job: str = "pretrain") -> ResolvedConfig:
    """Reads and checks a configuration and all that a start with it needs: corpora, folders, checkpoints.

    Args:
        settings: As on the command line: YAML files or `recipe:NAME`, later ones win, and `section.key=value` texts,
            which win over files.
        job: `pretrain`, `sft`, `reward` or `ppo`.
    Returns:
        The resolved configuration: `config.training.seq_length` and so on.
    Raises:
        ConfigError: with every problem at once.
    """
    files, overrides = split_settings([str(text) for text in settings])
    return prepare_start(files, overrides, None, kind=kind_of(job))[0]


def train(
    config: ResolvedConfig, on_step: Callable[[StepRecord], None] | None = None, *, job: str = "pretrain"
) -> Path:
    """Trains in this process, from the newest checkpoint of the run's folder where there is one.

    Args:
        config: As `load` gives it, for one process.
        on_step: Called after every step; what it raises ends the run.
        job: As for `load`.
    Returns:
        The run's folder, with checkpoints and metrics.jsonl.
    Raises:
        ConfigError: if the configuration needs several processes; `qwen-megatron launch` starts those.
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    if config.world_size != 1:
        raise ConfigError(
            f"parallel.world_size={config.world_size}: this is one process; start several with qwen-megatron launch"
        )
    settle_environment()
    silence_libraries()
    with first_imports():
        from qwen_megatron.train.hooks.callback import CallbackHook

    kind_of(job).run(config, [] if on_step is None else [CallbackHook(on_step)])
    return Path(config.checkpoint.directory)


def kind_of(job: str) -> JobKind:
    """A job by the name of its command.

    Raises:
        ConfigError: if there is none of that name.
    """
    if job not in JOBS:
        raise ConfigError(f"job={job!r:.100}: must be one of {', '.join(JOBS)}")
    return JOBS[job]


def export(checkpoint: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a Hugging Face folder of a checkpoint, or of the newest one of a run, in the format that fits it.

    Returns:
        The folder.
    Raises:
        CheckpointError: if the checkpoint is damaged, or `out` exists.
    """
    silence_libraries()
    from qwen_megatron.convert.to_hf import to_hf

    to_hf(Path(checkpoint), Path(out), hf_format=None, overwrite=overwrite)
    return Path(out)


def generate(source: str | Path, prompt: str, max_new_tokens: int = 64, **sampling: Any) -> str:
    """The continuation of a text, greedy if nothing else is said.

    Args:
        source: A checkpoint, a run's folder or a Hugging Face folder, of a model whose tokens are known.
        prompt: Ordinary text; control tokens are not special.
        max_new_tokens: Tokens to add at most.
        sampling: Other fields of `qwen_megatron.inference.sampling.Sampling`: temperature, top_k, top_p,
            repetition_penalty, seed, stop.
    Returns:
        The prompt and what follows.
    Raises:
        CheckpointError: if the model cannot be read, or its tokens are not known.
        ConfigError: if sampling is out of range.
        DataError: if the prompt is empty.
    """
    settle_environment()
    silence_libraries()
    with first_imports():
        from qwen_megatron.inference.continuation import continue_text
        from qwen_megatron.inference.sampling import Sampling

    return continue_text(Path(source), prompt, Sampling(max_new_tokens=max_new_tokens, **sampling))


def open_corpus(prefix: str | Path) -> Corpus:
    """Opens a corpus: `corpus.num_tokens`, `corpus.tokens(start, count)`; every block that is read is verified.

    Raises:
        DataError: if it is missing or damaged.
    """
    return Corpus.open(prefix)


def document(prefix: str | Path, number: int) -> str:
    """The text of a document of a corpus in Qwen's vocabulary.

    Args:
        prefix: Of the corpus.
        number: Of the document, from 0.
    Raises:
        DataError: if there is none, or the corpus is of another vocabulary.
    """
    from data_tools.corpus.inspect import read_document

    text = read_document(prefix, number)["text"]
    if text is None:
        raise DataError(f"{prefix}: is not in Qwen's vocabulary; open_corpus gives its tokens")
    return str(text)
