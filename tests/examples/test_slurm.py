"""The Slurm script's logic, with stand-ins for srun, scontrol and the command: when it requeues, and when not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The step of the job: until a stop file appears, at most; then what a run leaves behind.
UNTIL_STOPPED = """
touch "$RUN/started"
for _ in $(seq 300); do [[ -e "$RUN/stop" ]] && break; sleep 0.1; done
echo '{"reason": "stop file", "step": 7}' > "$RUN/completion.json"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the stand-ins, the script's checkout and a run's folder that is not there yet."""
    for name in ("bin", "venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("")
    stand_ins = {
        "scontrol": 'if [[ $1 == show ]]; then echo node7; echo node8; else echo "$@" >> "$LOG"; fi',
        "qwen-megatron": 'if [[ $1 == show-config ]]; then echo "checkpoint: {directory: $RUN}"; fi',
        "srun": 'echo "srun $* [$NNODES $MASTER_ADDR $NPROC_PER_NODE]" >> "$LOG"; eval "$STEP"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return tmp_path


def start(job: Path, step: str) -> subprocess.Popen[str]:
    """Runs the script as Slurm would, with `step` as what srun runs."""
    variables = {
        "PATH": os.pathsep.join([str(job / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "VENV": str(job / "venv"),
        "RUN": str(job / "run"),
        "LOG": str(job / "log"),
        "STEP": step,
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "123",
    }
    return subprocess.Popen(
        ["bash", str(ROOT / "examples/launch/slurm.sbatch"), "config.yaml"],
        env=os.environ | variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def log(job: Path) -> list[str]:
    return (job / "log").read_text().splitlines()


def test_near_the_time_limit_the_run_is_stopped_and_requeued(job: Path) -> None:
    (job / "run").mkdir()
    process = start(job, UNTIL_STOPPED)
    deadline = time.monotonic() + 30
    while not (job / "run/started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    step, requeue = log(job)
    assert step.endswith("examples/launch/multi_node.sh pretrain config.yaml parallel.world_size=8 [2 node7 4]")
    assert requeue == "requeue 123"


def test_a_limit_before_the_run_has_a_folder_makes_one(job: Path) -> None:
    process = start(job, f"touch {job}/up; for _ in $(seq 300); do [[ -e $RUN/stop ]] && exit 3; sleep 0.1; done")
    deadline = time.monotonic() + 30
    while not (job / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert (job / "run/stop").exists()
    assert len(log(job)) == 1, "what failed is not requeued"


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("""mkdir $RUN; echo '{"reason": "finished", "step": 9}' > $RUN/completion.json""", 0),
        ("exit 3", 3),
    ],
    ids=["finished", "failed"],
)
def test_a_run_that_ends_by_itself_is_not_requeued(job: Path, step: str, status: int) -> None:
    process = start(job, step)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert len(log(job)) == 1


def test_a_wrong_configuration_starts_nothing(job: Path) -> None:
    command = job / "bin/qwen-megatron"
    command.write_text("#!/usr/bin/env bash\nexit 2\n")
    process = start(job, "true")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert not (job / "log").exists()
