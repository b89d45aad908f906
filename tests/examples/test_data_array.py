"""The Slurm array of a data pipeline, with a stand-in for srun: shares that together are the whole, wrong numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.corpus.verify import verify

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/launch/data_array.sbatch"


def start(folder: Path, arguments: list[str], **slurm: str) -> "subprocess.Popen[str]":
    """Runs the script as Slurm would."""
    for name, body in (("srun", 'shift; exec "$@"'), ("qwen-data", f'exec {sys.executable} -m data_tools "$@"')):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "VENV": "",
        "PYTHONPATH": str(ROOT),
        "SLURM_CPUS_PER_TASK": "1",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | variables | {f"SLURM_ARRAY_TASK_{name}": value for name, value in slurm.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_jobs_of_an_array_make_the_corpus_and_a_last_one_tidies_up(tmp_path: Path) -> None:
    (tmp_path / "web.jsonl").write_text("".join(f'{{"text": "document {number % 40}"}}\n' for number in range(50)))
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"output: {tmp_path}/out\nstages:\n  - kind: read\n    split_bytes: 300\n    inputs:\n"
        f"      - {{path: {tmp_path}/web.jsonl, source: web}}\n  - kind: exact_dedup\n  - kind: tokenize\n"
    )
    jobs = [start(tmp_path, [str(pipeline)], ID=str(number), COUNT="2", MIN="0", MAX="1") for number in range(2)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    done = [int(line.split(" tasks done")[0]) for text in said for line in text.splitlines() if " tasks done" in line]
    assert min(done) >= 3, said
    work = tmp_path / "out/stages/03-tokenize/web"
    assert (work / "runs").is_dir()
    last = start(tmp_path, [str(pipeline)])
    output = last.communicate(timeout=120)[0]
    assert last.returncode == 0, output
    assert "0 tasks done" in output
    assert verify(tmp_path / "out/corpora/web").num_documents == 40
    assert not (work / "runs").exists()


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
    job = start(tmp_path, arguments, **numbers)
    output = job.communicate(timeout=30)[0]
    assert job.returncode == 2
    assert message in output
