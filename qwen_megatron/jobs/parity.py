"""Whether layouts train alike: a recipe, scaled down, trained in each of them and in one process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError, TrainingError
from qwen_megatron.jobs.launcher import environment_for_children
from qwen_megatron.jobs.preflight import prepare_start

KEYS = {
    "tp": "parallel.tensor_model_parallel_size",
    "pp": "parallel.pipeline_model_parallel_size",
    "vpp": "parallel.virtual_pipeline_model_parallel_size",
    "cp": "parallel.context_parallel_size",
}
DEFAULT_LAYOUTS = "tp2-sp,pp2,cp2,dp2,tp2-sp-pp2-dp2"
TOLERANCE = 1e-5

# Divides by 2, 4 and 8 wherever a layout splits it.
SCALED = {
    "model.num_layers": 8,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 176,
    "model.num_attention_heads": 8,
    "model.num_query_groups": 8,
    "model.kv_channels": 8,
    "training.precision": "fp32",
    "training.seq_length": 256,
    "training.micro_batch_size": 1,
    "training.global_batch_size": 8,
    "training.rampup_start_batch_size": "null",
    "training.rampup_batch_size_increment": "null",
    "training.rampup_samples": "null",
    "data.eval_samples": 0,
    "data.eval_blend": "[]",
    "data.num_workers": 1,
    "checkpoint.load": "none",
    "checkpoint.init_from": "null",
    "logging.tensorboard": "false",
    "parallel.world_size": "null",
    "parallel.sequence_parallel": "false",
    "parallel.overlap_param_gather": "false",
    "parallel.overlap_grad_reduce": "false",
    "parallel.gradient_bucket_size": "null",
    "parallel.recompute_granularity": "none",
    "parallel.virtual_pipeline_model_parallel_size": "null",
    "parallel.num_layers_in_first_pipeline_stage": "null",
    "parallel.num_layers_in_last_pipeline_stage": "null",
    "parallel.tensor_model_parallel_size": 1,
    "parallel.pipeline_model_parallel_size": 1,
    "parallel.context_parallel_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout to compare.

    Attributes:
        name: As the user wrote it.
        world_size: Processes.
        overrides: Settings.
    """

    name: str
    world_size: int
    overrides: tuple[str, ...]


def train_layouts(
    files: Sequence[str], overrides: Sequence[str], layouts: Sequence[Layout], steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Trains some steps in one process, then in each layout.

    Args:
        files: YAML files of the recipe.
        overrides: `section.key=value` texts after it.
        layouts: To compare.
        steps: Optimizer steps in each.
    Returns:
        Loss and gradient norm of every step, by the layout's name, one process first.
    Raises:
        ConfigError: if the recipe does not fit a layout.
        TrainingError: if a run fails; its last lines are in the message.
    """
    settings = [*overrides, *(f"{key}={value}" for key, value in SCALED.items()), f"training.exit_iter={steps}"]
    with tempfile.TemporaryDirectory(prefix="check-parity-") as folder:
        jobs = [Layout(name="one process", world_size=1, overrides=()), *layouts]
        # Every layout is checked before the first one is trained.
        for job in jobs:
            checked(files, [*settings, *job.overrides, f"checkpoint.directory={folder}/run"], job)
        losses = {}
        for number, job in enumerate(jobs):
            print(f"training {steps} steps: {job.name}", file=sys.stderr, flush=True)
            directory = Path(folder) / str(number)
            losses[job.name] = train(files, [*settings, *job.overrides, f"checkpoint.directory={directory}"], job)
    return losses


def largest_differences(losses: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Largest relative differences of loss and gradient norm from the first entry, by the names of the others."""
    reference, *others = losses
    return {
        name: (
            max(abs(new[0] - old[0]) / abs(old[0]) for old, new in zip(losses[reference], losses[name], strict=True)),
            max(abs(new[1] - old[1]) / abs(old[1]) for old, new in zip(losses[reference], losses[name], strict=True)),
        )
        for name in others
    }


def parse_layout(text: str) -> Layout:
    """A layout such as `tp2-sp-pp2-vpp2-dp2`.

    Raises:
        ConfigError: naming the part that is none.
    """
    sizes = {"tp": 1, "pp": 1, "cp": 1, "dp": 1}
    overrides = []
    for part in text.strip().split("-"):
        match = re.fullmatch(r"(vpp|tp|pp|cp|dp)([1-9][0-9]*)", part)
        if part == "sp":
            overrides.append("parallel.sequence_parallel=true")
        elif match is None:
            raise ConfigError(
                f"--layouts {text}: {part!r} must be sp, or tp, pp, vpp, cp or dp with a size, such as tp2"
            )
        else:
            axis, size = match[1], int(match[2])
            sizes[axis] = size
            if axis != "dp":
                overrides.append(f"{KEYS[axis]}={size}")
    world_size = sizes["tp"] * sizes["pp"] * sizes["cp"] * sizes["dp"]
    return Layout(name=text.strip(), world_size=world_size, overrides=tuple(overrides))


def checked(files: Sequence[str], settings: list[str], job: Layout) -> ResolvedConfig:
    """The resolved configuration of a layout.

    Raises:
        ConfigError: with every problem, the layout named.
    """
    try:
        return prepare_start(files, settings, job.world_size)[0]
    except ConfigError as error:
        raise ConfigError([f"layout {job.name}: {problem}" for problem in error.problems]) from error


def train(files: Sequence[str], settings: list[str], job: Layout) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step.

    Raises:
        TrainingError: if the run fails.
    """
    launcher = [sys.executable, "-m", "qwen_megatron.parallel.loopback", "--nproc-per-node", str(job.world_size)]
    command = [*launcher, "-m", "qwen_megatron", "pretrain", *files, *settings]
    environment = environment_for_children(OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise TrainingError(f"layout {job.name}: the run failed:\n{last}")
    directory = settings[-1].partition("=")[2]
    rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]
