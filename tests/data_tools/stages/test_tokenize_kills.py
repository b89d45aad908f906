"""A tokenization that is killed, with all its processes, goes on and ends in the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from data_tools.corpus.sidecar import Sidecar
from data_tools.corpus.verify import verify

WORDS = ("the", "of", "river", "stone", "quickly", "walked", "bright", "morning", "people", "said", "naïve", "猫")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file of several parts and one small file with bad lines."""
    folder = tmp_path_factory.mktemp("kills")
    chooser = random.Random(1)
    paragraphs = [" ".join(chooser.choices(WORDS, k=200)) for _ in range(200)]
    large, small = folder / "large.jsonl", folder / "small.jsonl"
    with large.open("wb") as stream:
        while stream.tell() < 9_000_000:
            text = "\n".join(chooser.choices(paragraphs, k=chooser.randrange(1, 30)))
            stream.write(orjson.dumps({"text": f"{chooser.random()} {text}"}) + b"\n")
    small.write_bytes(b'{"text": "good"}\nbad\n{"text": 1}\n' * 100)
    return [small, large]


# The command with parts of 4 MB instead of 16: as many of them, and as many moments to be killed at, in a quarter of
# the text.
IN_SMALL_PARTS = (
    "import sys\n"
    "from data_tools.cli import main\n"
    "from data_tools.stages import tokenize_files\n"
    "tokenize_files._SMALLEST_PART_BYTES = 4 * 1024 * 1024\n"
    "sys.exit(main())\n"
)


def command(sources: list[Path], prefix: Path) -> list[str]:
    arguments = ["tokenize", *map(str, sources), "--output", str(prefix), "--workers", "2"]
    return [sys.executable, "-c", IN_SMALL_PARTS, *arguments]


def start(sources: list[Path], prefix: Path) -> "subprocess.Popen[str]":
    """A run in a process group of its own."""
    return subprocess.Popen(
        command(sources, prefix), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill(process: "subprocess.Popen[str]", folder: Path) -> str:
    """Kills the whole group; how far it was, or nothing if it had ended by itself."""
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    done = {kind: len(list(folder.glob(f".c.work/{kind}/*.manifest.json"))) for kind in ("runs", "buckets")}
    named = ", ".join(sorted(path.name for path in folder.glob("c.*")))
    return f"{done['runs']} parts, {done['buckets']} buckets done; {named or 'nothing'} there" if alive else ""


def checksums(prefix: Path) -> tuple[str, str, str, bytes]:
    sidecar = Sidecar.read(prefix)
    return sidecar.bin.sha256, sidecar.idx.sha256, sidecar.crc.sha256, Path(f"{prefix}.rejected.jsonl").read_bytes()


def names_in(folder: Path) -> list[str]:
    """Names in a folder of a run under way, which may remove it between two looks; none if it is gone or a file."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def progress(folder: Path) -> int:
    """How far a run is, in steps that any run takes in about this order: files appear, get their names, go."""
    work = [name for kind in names_in(folder / ".c.work") for name in names_in(folder / ".c.work" / kind)]
    unnamed = [name for name in work if name.startswith(".") and name.endswith(".tmp")]
    here = names_in(folder)
    scratch = [name for place in here if place.startswith(".c.scratch-") for name in names_in(folder / place)]
    return len(work) + len(unnamed) + 2 * len(scratch) + 3 * sum(name.startswith("c.") for name in here)


class Undisturbed(NamedTuple):
    """A run that nobody disturbs."""

    checksums: tuple[str, str, str, bytes]
    seconds: float
    steps: int


@pytest.fixture(scope="module")
def undisturbed(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    process = start(sources, folder / "c")
    most = 0
    while process.poll() is None:
        most = max(most, progress(folder))
        time.sleep(0.005)
    assert process.returncode == 0
    process.communicate()
    verify(folder / "c")
    return Undisturbed(checksums(folder / "c"), time.monotonic() - started, most)


def kill_at_step(sources: list[Path], folder: Path, step: int) -> str:
    """Where it was killed; empty if it was too fast."""
    process = start(sources, folder / "c")
    while process.poll() is None and progress(folder) < step:
        time.sleep(0.004)
    return kill(process, folder)


def kill_after(sources: list[Path], folder: Path, seconds: float) -> str:
    """Where it was killed; empty if it was too fast."""
    process = start(sources, folder / "c")
    time.sleep(seconds)
    return kill(process, folder)


def finish(sources: list[Path], folder: Path) -> None:
    subprocess.run(command(sources, folder / "c"), check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_killed_three_times_it_ends_in_the_same_bytes(
    sources: list[Path], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    steps = sorted(random.Random(7).sample(range(2, undisturbed.steps - 1), 3))
    assert all(kill_at_step(sources, tmp_path, step) for step in steps)
    finish(sources, tmp_path)
    assert checksums(tmp_path / "c") == undisturbed.checksums


def test_killed_between_the_names_of_its_files_it_goes_on(
    sources: list[Path], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    process = start(sources[:1], tmp_path / "c")
    assert process.wait(60) == 0
    process.communicate()
    code = (
        "import os, signal, sys\n"
        "from data_tools.corpus.sidecar import Sidecar\n"
        "from data_tools.stages.tokenize_files import tokenize\n"
        "Sidecar.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tokenize(sys.argv[1:2], sys.argv[2])\n"
    )
    other = tmp_path / "other"
    other.mkdir()
    small = [sys.executable, "-c", code, str(sources[0]), str(other / "c")]
    assert subprocess.run(small, check=False, timeout=60).returncode == -signal.SIGKILL
    assert (other / "c.bin").exists()
    assert not (other / "c.json").exists()
    finish(sources[:1], other)
    assert checksums(other / "c") == checksums(tmp_path / "c")


def test_four_runs_on_one_output(sources: list[Path], undisturbed: Undisturbed, tmp_path: Path) -> None:
    first = start(sources, tmp_path / "c")
    lock = tmp_path / "c.lock"
    while not (lock.exists() and lock.read_bytes()):
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # It holds the lock for as long as the others need.
    try:
        others = [start(sources, tmp_path / "c") for _ in range(3)]
        errors = [process.communicate(timeout=60)[1] for process in others]
    finally:
        first.send_signal(signal.SIGCONT)
    assert [process.returncode for process in others] == [1, 1, 1]
    assert all(f"process {first.pid} on " in error and "is writing this corpus" in error for error in errors)
    assert first.wait(120) == 0
    first.communicate()
    assert checksums(tmp_path / "c") == undisturbed.checksums


@pytest.mark.faults
def test_campaign_of_kills(sources: list[Path], undisturbed: Undisturbed, tmp_path: Path) -> None:
    """24 points, half by progress and half by time; each is a corpus of its own, killed once, every third one twice."""
    drawn = random.Random(20)
    rows = []
    for number in range(24):
        folder = tmp_path / str(number)
        folder.mkdir()
        places = []
        for _ in range(2 if number % 3 == 0 else 1):
            if number % 2:
                seconds = drawn.uniform(0.1, 0.9) * undisturbed.seconds
                while not (place := kill_after(sources, folder, seconds)):
                    seconds /= 2  # This run was faster than the undisturbed one.
                    for path in folder.iterdir():
                        path.unlink()
                places.append(place)
            else:
                places.append(kill_at_step(sources, folder, drawn.randrange(1, undisturbed.steps - 1)))
        finish(sources, folder) if not (folder / "c.json").exists() else None
        rows.append((places, checksums(folder / "c") == undisturbed.checksums))
    print("\n| point | killed | same bytes |\n|---|---|---|")
    for number, (places, same) in enumerate(rows):
        print(f"| {number + 1} | {'; '.join(place or 'too late' for place in places)} | {'yes' if same else 'NO'} |")
    assert all(same for _, same in rows)
    assert sum(any(places) for places, _ in rows) >= 20
