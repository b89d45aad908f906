"""What the source of `checkpoint.init_from` says of its model: taken where a user says nothing, else compared.

A checkpoint knows the base of the rotary embedding its weights were trained with; a preset knows that of a release.
Small JSON files tell, so that a dry run sees what a start would.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.settings.words import show
from qwen_megatron.checkpoint.manifest import listed_files
from qwen_megatron.checkpoint.state import CheckpointState, only_model, saved_model_config
from qwen_megatron.config.schema import Settings
from qwen_megatron.config.sections.model import SHAPE, STRETCHES, ModelConfig
from qwen_megatron.convert.hf_config import read_config
from qwen_megatron.convert.hf_format import Format
from qwen_megatron.convert.hf_paths import CONFIG, inside, is_hf_folder
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL

# What no shape tells, but the weights were trained with.
SEMANTICS = ("seq_length", "rotary_base", *STRETCHES, "layernorm_epsilon")


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """The model of a checkpoint or of a Hugging Face folder.

    Attributes:
        path: Where it is.
        model: Its architecture.
        hf_format: Format of a Hugging Face folder; None for a checkpoint.
        head: `language_model` or `scalar`.
    """

    path: Path
    model: ModelConfig
    hf_format: Format | None
    head: str = LANGUAGE_MODEL

    @property
    def semantics(self) -> tuple[str, ...]:
        """Those of `SEMANTICS` that it tells; only one format has a place for dynamic NTK and LogN."""
        tells_all = self.hf_format is None or self.hf_format.has_stretches
        return tuple(name for name in SEMANTICS if tells_all or name not in STRETCHES)


def read_source(path: Path) -> SourceModel:
    """Reads what a source says of its model; no weights.

    Raises:
        CheckpointError: if it is neither a checkpoint nor a Hugging Face folder, or of another architecture.
    """
    if is_hf_folder(path):
        hf_format, model = read_config(inside(path, CONFIG))
        return SourceModel(path=path, model=model, hf_format=hf_format)
    listed_files(path)
    return saved_source(path)


def saved_source(path: Path) -> SourceModel:
    """What a checkpoint says of its model.

    Raises:
        CheckpointError: if its `state.json` is missing or does not say.
    """
    state = CheckpointState.read(path)
    name = only_model(state, path)
    return SourceModel(
        path=path, model=saved_model_config(path, name), hf_format=None, head=state.model(name, path).head
    )


def with_architecture(settings: Settings, source: SourceModel) -> Settings:
    """The settings with what the source says of its model in place of what is not given.

    The shape is taken where no preset is named: a preset says which shape is meant, and another one is a mistake.
    """
    given = settings["model"]
    names = source.semantics if given.get("preset") is not None else (*SHAPE, *source.semantics)
    taken = {name: getattr(source.model, name) for name in names}
    return {**settings, "model": {**taken, **given}}


def shape_differences(source: SourceModel, wanted: ModelConfig) -> str:
    """Every setting of the shape that differs, for a message; empty if the weights fit.

    Args:
        source: Where weights come from.
        wanted: The model they are for.
    """
    saved = source.model
    return "; ".join(
        f"model.{name}={show(getattr(wanted, name))}, but it has {show(getattr(saved, name))}"
        for name in SHAPE
        if getattr(saved, name) != getattr(wanted, name)
    )


def check_same_shape(source: SourceModel, wanted: ModelConfig) -> None:
    """Refuses a source whose model has another shape.

    Raises:
        CheckpointError: naming every setting of the shape that differs.
    """
    different = shape_differences(source, wanted)
    if different:
        raise CheckpointError(f"checkpoint.init_from={source.path}: {different}; use the values it has")


def check_head(source: SourceModel, wanted: str) -> None:
    """Refuses a reward model where a language model is trained; a scalar head can be put on any model.

    Raises:
        CheckpointError: naming both heads.
    """
    if wanted == LANGUAGE_MODEL and source.head != wanted:
        raise CheckpointError(
            f"checkpoint.init_from={source.path}: is a reward or value model, with a {source.head} head, and has no "
            "output layer; name the language model that it was trained from"
        )


def departures(source: SourceModel, wanted: ModelConfig) -> list[str]:
    """What a model does otherwise than its source was trained with, one line each.

    Wanted when a context is extended, wrong otherwise.
    """
    return [
        f"note: model.{name} is {show(getattr(wanted, name))} as given, {source.path} was trained with "
        f"{show(getattr(source.model, name))}"
        for name in source.semantics
        if getattr(source.model, name) != getattr(wanted, name)
    ]
