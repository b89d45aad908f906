"""The Slurm script of the package, filled in for a job."""

from __future__ import annotations

import importlib.resources
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(str(importlib.resources.files("qwen_megatron.recipes"))) / "launch"
START = "set -euo pipefail\n"


def slurm_script(settings: Sequence[str], *, nodes: int, processes_per_node: int) -> str:
    """The batch script of a job.

    Args:
        settings: What `qwen-megatron launch` is given: a job's name where it is not pretraining, files, settings.
        nodes: Machines.
        processes_per_node: GPUs of each.
    Returns:
        A script for sbatch that names this environment and needs nothing of the checkout.
    """
    text = (SCRIPTS / "slurm.sbatch").read_text(encoding="utf-8")
    head, _, body = text.partition(START)
    # Of the comment that says how to submit the file by hand only the directives stay.
    directives = [line for line in head.splitlines() if line.startswith(("#!", "#SBATCH"))]
    directives = [line for line in directives if "--gpus-per-node" not in line]
    filled = [
        *directives,
        f"#SBATCH --nodes={nodes}",
        f"#SBATCH --gpus-per-node={processes_per_node}",
        START.rstrip(),
        f"set -- {shlex.join(settings)}",
        f'export VENV= PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        f"MULTI_NODE={shlex.quote(str(SCRIPTS / 'multi_node.sh'))}",
    ]
    return "\n".join(filled) + "\n" + body
