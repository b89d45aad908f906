"""The Slurm array of a data pipeline, with stand-ins for srun and the command: shares and wrong numbers.

That shares together are the whole is shown by tests/data_tools/pipeline/test_killed_and_shared_runs.py.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/launch/data_array.sbatch"


def start(folder: Path, *arguments: str, **slurm: str) -> "subprocess.CompletedProcess[str]":
    """Runs the script as Slurm would; the stand-ins print what they are given."""
    for name, body in (("srun", 'echo "$1"; shift; exec "$@"'), ("qwen-data", 'echo "$*"')):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/activate").write_text("echo activated\n")
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "VENV": str(folder / "venv"), "SLURM_CPUS_PER_TASK": "4"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | variables | {f"SLURM_ARRAY_TASK_{name}": value for name, value in slurm.items()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_every_job_of_an_array_has_its_shard(tmp_path: Path) -> None:
    job = start(tmp_path, "p.yaml", "--max-bad", "1%", ID="3", COUNT="8", MIN="0", MAX="7")
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == [
        "activated",
        "--cpus-per-task=4",
        "run p.yaml --max-bad 1% --shard 3/8 --workers 4",
    ]


def test_a_single_job_tidies_up(tmp_path: Path) -> None:
    job = start(tmp_path, "p.yaml")
    assert job.stdout.splitlines()[-1] == "run p.yaml --workers 4"


@pytest.mark.parametrize(
    ("arguments", "numbers", "message"),
    [
        ([], {}, "give what qwen-data run is given"),
        (["p.yaml"], {"ID": "1", "COUNT": "2", "MIN": "1", "MAX": "2"}, "numbers 1 to 2, 2 jobs: they must be 0 to"),
        (["p.yaml"], {"ID": "0", "COUNT": "2", "MIN": "0", "MAX": "4"}, "as in --array=0-1"),
    ],
)
def test_wrong_uses_end_before_anything_starts(
    tmp_path: Path, arguments: list[str], numbers: dict[str, str], message: str
) -> None:
    job = start(tmp_path, *arguments, **numbers)
    assert job.returncode == 2
    assert message in job.stderr
    assert "run" not in job.stdout
