"""From a checkpoint or a Hugging Face folder to a generator, on the processes of this job."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from data_tools.settings.problems import nearest_divisors
from qwen_megatron.checkpoint.load import checkpoint_in
from qwen_megatron.checkpoint.state import CheckpointState, saved_model_config
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.hf_config import read_config
from qwen_megatron.convert.hf_paths import CONFIG, inside, is_hf_folder
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.inference.extension import CHECKPOINT, parse_extension, parse_windows
from qwen_megatron.inference.generator import MAX_ROWS, Generator
from qwen_megatron.inference.loading import inference_groups, load_for_inference
from qwen_megatron.inference.vocabulary import Vocabulary, vocabulary_of
from qwen_megatron.parallel.groups import Groups


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model is read.

    Attributes:
        name: Of the model, where a checkpoint holds several.
        allow_nonfinite: Take weights that hold NaN or infinity too.
        precision: `fp32` or `bf16`.
        tensor_size: Tensor-parallel ranks; None for all ranks of a pipeline stage.
        pipeline_size: Pipeline stages.
        extend: By name; see `inference.extension`.
        windows: As of the option; see `inference.extension.parse_windows`.
        native_length: Tokens of the context it was trained on; None as the checkpoint or config.json says.
    """

    name: str | None = None
    allow_nonfinite: bool = False
    precision: str = "fp32"
    tensor_size: int | None = None
    pipeline_size: int = 1
    extend: str = CHECKPOINT
    windows: str = CHECKPOINT
    native_length: int | None = None


@contextlib.contextmanager
def open_generator(
    source: Path,
    opening: Opening | None = None,
    *,
    longest: int | None = None,
    with_text: bool = True,
    max_rows: int = MAX_ROWS,
) -> Iterator[Generator]:
    """A generator, for as long as the context is open. Collective over the ranks of the job.

    Args:
        source: A checkpoint of any layout, a run's folder, or a Hugging Face folder.
        opening: How it is read.
        longest: Tokens of the longest text, where the rotary base is stretched for all texts alike.
        with_text: The tokens must be known; else prompts may be ids of any vocabulary.
        max_rows: Texts that are generated at once.
    Raises:
        ConfigError: if the layout does not divide the model, or an option is wrong.
        CheckpointError, DataError, PlatformError: from source and machine.
    """
    opening = opening or Opening()
    if not is_hf_folder(source):
        source = checkpoint_in(source)
    config, trained_length = described(source, opening.name)
    extension, windows = parse_extension(opening.extend), parse_windows(opening.windows, config.num_layers)
    if extension is not None and extension.ntk == "fixed" and longest is None:
        raise ConfigError(f"--extend={opening.extend}: ntk needs the length of the longest text; use dynamic-ntk")
    vocabulary = known_vocabulary(source, config.vocab_size, needed=with_text)
    with inference_groups(tensor_size=opening.tensor_size, pipeline_size=opening.pipeline_size) as groups:
        check_layout(config, groups)
        model = load_for_inference(
            source,
            groups,
            precision=opening.precision,
            name=opening.name,
            allow_nonfinite=opening.allow_nonfinite,
        )
        generator = Generator(
            model,
            groups,
            vocabulary,
            max_rows=max_rows,
            native_length=opening.native_length or trained_length,
        )
        generator.read_with(extension, longest=longest or 0, windows=windows)
        yield generator


def known_vocabulary(source: Path, vocab_size: int, *, needed: bool) -> Vocabulary | None:
    """The tokens of a model, if they are known.

    Raises:
        CheckpointError: if they are needed and not known.
    """
    try:
        return vocabulary_of(source, vocab_size)
    except CheckpointError:
        if needed:
            raise
        return None


def described(source: Path, name: str | None) -> tuple[ModelConfig, int | None]:
    """The architecture, and the context it was last trained on where that is known.

    Raises:
        CheckpointError: if the source does not tell.
    """
    if is_hf_folder(source):
        return read_config(inside(source, CONFIG))[1], None
    trained = CheckpointState.read(source).config.get("training", {}).get("seq_length")
    return saved_model_config(source, name), trained if isinstance(trained, int) else None


def native_length_of(source: Path, opening: Opening) -> int:
    """Tokens of the context a model was trained on, or was made for where that is more.

    Raises:
        CheckpointError: if the source does not tell.
    """
    if opening.native_length:
        return opening.native_length
    config, trained_length = described(source if is_hf_folder(source) else checkpoint_in(source), opening.name)
    return max(config.seq_length, trained_length or 0)


def check_layout(config: ModelConfig, groups: Groups) -> None:
    """Refuses a layout that does not divide the model.

    Raises:
        ConfigError: naming what does not divide what.
    """
    tensor, stages = groups.tp.size(), groups.pp.size()
    problems = []
    common = math.gcd(config.num_attention_heads, config.num_query_groups, config.ffn_hidden_size)
    if common % tensor:
        problems.append(
            f"{tensor} tensor-parallel processes must divide num_attention_heads({config.num_attention_heads}), "
            f"num_query_groups({config.num_query_groups}) and ffn_hidden_size({config.ffn_hidden_size}); "
            f"{nearest_divisors(common, tensor)}"
        )
    if config.num_layers % stages:
        problems.append(
            f"--pipeline-model-parallel-size={stages}: must divide num_layers({config.num_layers}); "
            f"{nearest_divisors(config.num_layers, stages)}"
        )
    if dist.get_world_size() != tensor * stages:
        problems.append(
            f"{dist.get_world_size()} processes were started for {tensor} tensor-parallel x {stages} pipeline-parallel "
            f"ones; start {tensor * stages}"
        )
    if problems:
        raise ConfigError(problems)
