"""Programs that a model wrote: they pass by running to their last line, and touch nothing but their folder."""

from __future__ import annotations

import os
import re
import socket
import struct
import tempfile
from pathlib import Path

import pytest

from qwen_megatron.errors import PlatformError
from qwen_megatron.evaluation import confinement, sandbox
from qwen_megatron.evaluation.sandbox import Limits, Outcome, check_sandbox, run_program

SHORT = Limits(seconds=1.5)
# For everything that ends by itself, however busy the machine is.
PATIENT = Limits(seconds=60, memory_bytes=512 << 20)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own, empty again after every program."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def run(text: str, temporary: Path, limits: Limits = PATIENT) -> Outcome:
    outcome = run_program(text, limits)
    assert list(temporary.iterdir()) == []
    return outcome


GOOD = {
    "a test that holds": "def f(x):\n    return x + 1\nassert f(1) == 2",
    "the standard library": "import collections, decimal, hashlib, heapq, json, math, re, statistics, zoneinfo",
    "threads": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
    "its own folder": "import tempfile\nopen('a', 'w').write('x')\ntempfile.mkstemp()\nassert open('a').read() == 'x'",
    "closed streams": "import os\nos.close(1)\nos.close(2)",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_passes(text: str, temporary: Path) -> None:
    assert run(text, temporary) == Outcome(True, "passed")


BAD = {
    "a test that fails": ("assert 1 + 1 == 3, 'sum'", "AssertionError: sum"),
    "no Python": ("def f(:", "SyntaxError"),
    "no text": ("\udc80", "SyntaxError"),
    "leaves before the tests, status 0": ("import os\nos._exit(0)\nassert False", "before its last line.* status 0"),
    "exits before the tests": ("import sys\nprint('all passed')\nsys.exit(0)\nassert False", "before its last line"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "status -11"),
    "takes memory": ("x = [bytearray(1 << 26) for _ in range(1000)]", "memory"),
    "takes memory beside its address space": ("import os\nos.memfd_create('x')", "not permitted"),
    "prints megabytes": ("print('x' * 5_000_000)", "printed more than"),
    "a large file": ("open('a', 'wb').write(bytes(20_000_000))", "File too large"),
    "many files": ("for i in range(500):\n    open(str(i), 'wb').write(bytes(4_000_000))", "wrote more than|No space"),
    "starts a process": ("import os\nos.fork()", "not permitted"),
    "starts a program": ("import subprocess\nsubprocess.run(['true'])", "not permitted"),
    "opens a socket": ("import socket\nsocket.socket()", "not permitted"),
    "makes a pair of sockets": ("import socket\nsocket.socketpair()", "not permitted"),
    "signals its parent": ("import os\nos.kill(os.getppid(), 9)", "not permitted"),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))",
        "not allowed|not permitted",
    ),
    "looks at others": ("open('/proc/1/environ').read()", "Permission denied"),
    "changes a mode": ("import os\nopen('a', 'w')\nos.chmod('a', 0o777)", "not permitted"),
    "links out and writes": ("import os\nos.symlink('/etc', 'a')\nopen('a/evil', 'w')", "Permission denied"),
}


@pytest.mark.parametrize(
    "text",
    ["while True:\n    pass", "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"],
    ids=["busy", "asleep"],
)
def test_what_does_not_end(text: str, temporary: Path) -> None:
    outcome = run(text, temporary, SHORT)
    assert not outcome.passed
    assert "ran longer than 1.5 s" in outcome.reason or "processor time" in outcome.reason


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD)
def test_what_fails(text: str, reason: str, temporary: Path) -> None:
    outcome = run(text, temporary)
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome


@pytest.mark.parametrize(
    "action",
    [
        "open(OUTSIDE + '/new', 'w')",
        "open(OUTSIDE + '/old').read()",
        "open(OUTSIDE + '/old', 'w')",
        "os.truncate(OUTSIDE + '/old', 0)",
        "os.remove(OUTSIDE + '/old')",
        "os.rename(OUTSIDE + '/old', 'mine')",
        "os.link(OUTSIDE + '/old', 'mine')",
        "os.utime(OUTSIDE + '/old', (0, 0))",
        "os.mkdir(OUTSIDE + '/folder')",
        "os.listdir(OUTSIDE)",
    ],
)
def test_files_of_others_stay_as_they_are(action: str, tmp_path: Path, temporary: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_text("kept", encoding="utf-8")
    before = (outside / "old").stat()
    outcome = run(f"import os\nOUTSIDE = {str(outside)!r}\n{action}", temporary)
    assert not outcome.passed
    assert "PermissionError" in outcome.reason or "Invalid cross-device link" in outcome.reason
    after = (outside / "old").stat()
    assert [entry.name for entry in outside.iterdir()] == ["old"]
    assert (outside / "old").read_text(encoding="utf-8") == "kept"
    assert (after.st_mtime_ns, after.st_mode, after.st_nlink) == (before.st_mtime_ns, before.st_mode, before.st_nlink)


def test_an_open_port_is_not_reached(temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", temporary)
        assert not outcome.passed
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_of_the_environment_is_inherited(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setenv("SECRET", "x")
    program = "import os\nassert set(os.environ) <= {'TMPDIR', 'HOME', 'PYTHONHASHSEED', 'LC_CTYPE'}, os.environ"
    assert run(program, temporary).passed
    # No descriptors but the streams and the two pipes; the third is that of the listing.
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        assert "Bad file descriptor" in run(f"import os\nos.fstat({descriptor})", temporary).reason
    finally:
        os.close(descriptor)


def test_this_machine_keeps_the_promises() -> None:
    check_sandbox()


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "confinement.py"
    text = Path(confinement.__file__).read_text(encoding="utf-8")
    script.write_text(text.replace('"landlock_create_ruleset": (444', '"landlock_create_ruleset": (999'), "utf-8")
    monkeypatch.setattr(confinement, "__file__", str(script))
    with pytest.raises(PlatformError, match=r"landlock_create_ruleset: Function not implemented.*nothing was run"):
        run_program(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()


def test_a_promise_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "confinement.py"
    text = Path(confinement.__file__).read_text(encoding="utf-8")
    script.write_text(text.replace('    "socket": (41, 198),\n', ""), encoding="utf-8")
    monkeypatch.setattr(sandbox.confinement, "__file__", str(script))
    with pytest.raises(PlatformError, match="a program can open a socket"):
        check_sandbox()


@pytest.mark.parametrize("column", [0, 1], ids=["x86-64", "arm64"])
def test_the_filter_ends_every_way_in_a_return(column: int) -> None:
    """The kernel checks the filter of this machine when it takes it; this one checks the other machine's too."""
    program = confinement.filter_program(column, 0x1234, 77)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    names = {**confinement.NUMBERS, **confinement.DENIED}
    numbers = [numbers[column] for numbers in names.values() if numbers[column] is not None]
    assert len(numbers) == len(set(numbers))

    def answer(architecture: int, number: int, *arguments: int) -> int:
        data = struct.pack("=IIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
        at, value = 0, 0
        while True:
            code, if_true, if_false, operand = steps[at]
            if code == confinement.RETURN:
                return operand
            if code == confinement.LOAD:
                (value,) = struct.unpack_from("=I", data, operand)
                at += 1
                continue
            holds = {
                confinement.EQUAL: value == operand,
                confinement.AT_LEAST: value >= operand,
                confinement.ANY_BIT: bool(value & operand),
            }[code]
            at += 1 + (if_true if holds else if_false)

    denied = confinement.FAIL | 1
    for name, columns in confinement.DENIED.items():
        if columns[column] is not None:
            assert answer(0x1234, columns[column], 1) == denied, name
    clone, tgkill, prlimit = (confinement.NUMBERS[name][column] for name in ("clone", "tgkill", "prlimit64"))
    assert answer(0x1234, clone, 0x11) == denied
    assert answer(0x1234, clone, confinement.CLONE_THREAD | 0x100) == confinement.ALLOW
    assert answer(0x1234, tgkill, 76) == denied
    assert answer(0x1234, tgkill, 77) == confinement.ALLOW
    assert answer(0x1234, prlimit, 0, 7, 0) == confinement.ALLOW
    assert answer(0x1234, prlimit, 0, 7, 1 << 40) == denied
    assert answer(0x1234, prlimit, 0, 7, 4096) == denied
    assert answer(0x1234, confinement.NUMBERS["clone3"][column]) == confinement.FAIL | 38
    assert answer(0x1234, {0: 0, 1: 63}[column]) == confinement.ALLOW  # read
    assert answer(0x1235, 0) == confinement.KILL
    assert answer(0x1234, 0x40000000) == confinement.KILL
