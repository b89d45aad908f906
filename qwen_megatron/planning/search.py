"""Which layouts a job can take on so many devices, and which is fastest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.settings.problems import Problems
from qwen_megatron.config.arithmetic.memory import RankMemory, stage_memory
from qwen_megatron.config.resolve import ResolvedConfig, examine, resolved_config
from qwen_megatron.config.schema import Settings
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.step_time import OURS, Engine, StepTime, step_time

TENSOR = "parallel.tensor_model_parallel_size"
PIPELINE = "parallel.pipeline_model_parallel_size"
VIRTUAL = "parallel.virtual_pipeline_model_parallel_size"
CONTEXT = "parallel.context_parallel_size"
SEQUENCE = "parallel.sequence_parallel"
RECOMPUTE = "parallel.recompute_granularity"
REDUCE, GATHER = "parallel.overlap_grad_reduce", "parallel.overlap_param_gather"
MICRO = "training.micro_batch_size"
FREE = (TENSOR, PIPELINE, VIRTUAL, CONTEXT, SEQUENCE, RECOMPUTE, REDUCE, GATHER, MICRO)
# Settings of a layout that a search does not try, but that a recipe's layout would need.
DROPPED = (
    "parallel.num_layers_in_first_pipeline_stage",
    "parallel.num_layers_in_last_pipeline_stage",
    "parallel.world_size",
)
LARGEST_MICRO_BATCH = 16
# Of a device's memory: left free for what an allocator cannot use.
HEADROOM = 0.05
# Slices of a sequence shorter than this keep no device busy.
SHORTEST_SLICE = 1024

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way to lay out a job, and what comes of it.

    Attributes:
        config: Resolved.
        values: Settings that differ from the recipe's, by key.
        memory: Of one rank of each pipeline stage.
        reserved_bytes: What the machine takes besides.
        time: Of a step.
    """

    config: ResolvedConfig
    values: Mapping[str, Any]
    memory: tuple[RankMemory, ...]
    reserved_bytes: int
    time: StepTime

    @property
    def largest_bytes(self) -> int:
        """Of the fullest rank, with what the machine takes."""
        return max(stage.total for stage in self.memory) + self.reserved_bytes

    @property
    def overrides(self) -> list[str]:
        """What `pretrain` takes to run it."""
        return [f"{key}={text_of(value)}" for key, value in self.values.items()]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        layouts: Those that fit, fastest first.
        closest: Where none fits, the one that needs least.
        refused: How many the configuration check refused.
        too_large: How many need more memory than there is.
    """

    layouts: tuple[Layout, ...]
    closest: Layout | None
    refused: int
    too_large: int


def search(
    settings: Settings,
    gpus: int,
    machine: Machine,
    kind: JobKind,
    *,
    fixed: Sequence[str] = (),
    engine: Engine = OURS,
) -> Found:
    """Tries all layouts of a job.

    Args:
        settings: Of the job; what it says of the layout is not binding.
        gpus: Devices.
        machine: Kind of device.
        kind: Of the job.
        fixed: Keys that keep their value.
        engine: What the program costs besides.
    Raises:
        ConfigError: with every problem, if the settings are wrong whatever the layout.
    """
    base = without_layout(settings, machine, fixed)
    candidates = list(dict_of_values(base, gpus, machine, fixed))
    fitting: list[Layout] = []
    closest: tuple[int, ResolvedConfig, Values] | None = None
    refused = too_large = 0
    first_problems: list[str] = []
    for values in candidates:
        problems = Problems()
        sections = examine(with_values(base, values), gpus, problems)
        kind.check_settings(sections, problems)
        if problems.messages:
            first_problems = first_problems or problems.messages
            refused += 1
            continue
        config = resolved_config(sections, kind.shape)
        needed = needed_bytes(config, machine)
        if needed > usable_bytes(machine):
            too_large += 1
            if closest is None or needed < closest[0]:
                closest = needed, config, values
            continue
        fitting.append(layout_of(config, values, settings, machine, engine))
    if not fitting and closest is None:
        raise ConfigError(first_problems or [f"--gpus {gpus}: no layout has so many ranks"])
    ordered = sorted(fitting, key=lambda layout: (layout.time.total, layout.largest_bytes))
    nearest = None if closest is None else layout_of(closest[1], closest[2], settings, machine, engine)
    return Found(layouts=tuple(ordered), closest=nearest, refused=refused, too_large=too_large)


def layout_of(config: ResolvedConfig, values: Values, settings: Settings, machine: Machine, engine: Engine) -> Layout:
    """The layout with its memory and time."""
    kernels = kernels_on(config, machine)
    stages = range(len(config.layers_per_stage))
    return Layout(
        config=config,
        values=changed(values, settings, config),
        memory=tuple(stage_memory(config, stage, kernels) for stage in stages),
        reserved_bytes=machine.reserved_bytes,
        time=step_time(config, machine, engine),
    )


def needed_bytes(config: ResolvedConfig, machine: Machine) -> int:
    """Of the fullest rank: of the first or the last stage."""
    kernels = kernels_on(config, machine)
    stages = {0, len(config.layers_per_stage) - 1}
    return max(stage_memory(config, stage, kernels).total for stage in stages) + machine.reserved_bytes


def usable_bytes(machine: Machine) -> int:
    """Of a device's memory, less the headroom."""
    return round((1 - HEADROOM) * machine.memory_bytes)


def without_layout(settings: Settings, machine: Machine, fixed: Sequence[str]) -> Settings:
    """The settings without those of their layout, on the machine's platform."""
    free = {*FREE, *DROPPED} - set(fixed)
    base = {
        section: {name: value for name, value in values.items() if f"{section}.{name}" not in free}
        for section, values in settings.items()
    }
    base["parallel"]["platform"] = "cpu" if machine.kernels == "cpu" else "auto"
    return base


def with_values(settings: Settings, values: Values) -> Settings:
    """The settings with some values put in; None leaves a setting open."""
    changed_sections = {section: dict(content) for section, content in settings.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if value is not None:
            changed_sections[section][name] = value
    return changed_sections


def dict_of_values(settings: Settings, gpus: int, machine: Machine, fixed: Sequence[str]) -> Iterator[Values]:
    """Values of the free settings whose sizes divide the devices, the model and the batch."""
    model = examine(settings, None, Problems()).model
    training = examine(settings, None, Problems()).training

    def sizes(key: str, free: Sequence[int]) -> Sequence[int]:
        section, _, name = key.partition(".")
        return [settings[section].get(name, 1)] if key in fixed else free

    tensors = sizes(TENSOR, [size for size in divisors(gpus) if size <= machine.ranks_per_node])
    stages = sizes(PIPELINE, [size for size in divisors(gpus) if model.num_layers % size == 0])
    longest = max(1, training.seq_length // SHORTEST_SLICE)
    contexts = sizes(CONTEXT, [size for size in divisors(gpus) if size <= longest])
    micros = sizes(MICRO, [1 << power for power in range(LARGEST_MICRO_BATCH.bit_length())])
    for tensor, stage, context in itertools.product(tensors, stages, contexts):
        if gpus % (tensor * stage * context):
            continue
        replicas = gpus // (tensor * stage * context)
        for micro in micros:
            if training.global_batch_size % (micro * replicas):
                continue
            yield from layouts_of(
                model.num_layers,
                training.global_batch_size // (micro * replicas),
                fixed,
                {TENSOR: tensor, PIPELINE: stage, CONTEXT: context, MICRO: micro},
                gpus // (tensor * stage),
            )


def layouts_of(
    num_layers: int, num_microbatches: int, fixed: Sequence[str], sizes: Values, sharing: int
) -> Iterator[Values]:
    """The sizes with every way to interleave and to compute again."""
    tensor, stages = sizes[TENSOR], sizes[PIPELINE]
    pieces: list[int | None] = [None]
    if stages > 1 and num_microbatches % stages == 0:
        pieces += [size for size in divisors(num_layers // stages) if size > 1]
    others: Values = {SEQUENCE: tensor > 1, REDUCE: sharing > 1, GATHER: sharing > 1}
    for virtual, recompute in itertools.product(pieces, ("none", "full")):
        values = {**sizes, VIRTUAL: virtual, **others, RECOMPUTE: recompute}
        values = {key: value for key, value in values.items() if key not in fixed}
        if RECOMPUTE in fixed and recompute != "none":
            continue
        if VIRTUAL in fixed and virtual is not None:
            continue
        yield values


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]


def changed(values: Values, settings: Settings, config: ResolvedConfig) -> Values:
    """Those values that the settings do not have already, and what of their layout must go."""
    differing: Values = {}
    for key, value in {"parallel.world_size": config.world_size, **values}.items():
        section, _, name = key.partition(".")
        if settings[section].get(name, default_of_layout(key)) != value:
            differing[key] = value
    for key in DROPPED[:2]:
        section, _, name = key.partition(".")
        if settings[section].get(name) is not None:
            differing[key] = None
    platform = config.parallel.platform
    if settings["parallel"].get("platform", "auto") != platform:
        differing["parallel.platform"] = platform
    return differing


def default_of_layout(key: str) -> Any:
    """The value of a setting of the layout that nobody gives."""
    if key in (SEQUENCE, REDUCE, GATHER):
        return False
    return {VIRTUAL: None, RECOMPUTE: "none", "parallel.world_size": None}.get(key, 1)


def text_of(value: Any) -> str:
    """As an override writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
