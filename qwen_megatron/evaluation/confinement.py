"""Runs a program that a model wrote, confined: a script for `sandbox.py`, of nothing but the standard library.

Before the program runs, this process gives up what the program must not have: capabilities; files, but for reading the
standard library and writing its own folder (Landlock); processes, sockets, signals to others, the owner and mode of
files, everything that changes the machine (seccomp); memory, processor time and large files (limits). None of it can
be taken back. What cannot be given up on a machine is an error, and the program does not run.

Linux on x86-64 and arm64, from kernel 5.13 on.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import runpy
import struct
import sys
from typing import Any

# Of a line written to the verdict's pipe: after this line the program runs.
CONFINED = b"confined\n"

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 22, 38, 9
SECCOMP_MODE_FILTER = 2

# System calls by number, (x86-64, arm64).
NUMBERS: dict[str, tuple[int, int]] = {
    "prlimit64": (302, 261),
    "clone": (56, 220),
    "clone3": (435, 435),
    "tgkill": (234, 131),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
# Refused with EPERM whatever the arguments; None where a machine has no call of that name. Landlock knows no owners,
# modes, times and attributes of files, nor, before its third version, `truncate`.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "setrlimit": (160, 164),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "truncate": (76, 45),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # What outlives a process, or is memory that its limit does not count.
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE_THREAD = 0x00010000

# Instructions of classic BPF, and where in `struct seccomp_data` things lie.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
X32_CALLS = 0x40000000

# Landlock: rights of version 1 (bits 0 to 12); later versions add moving, truncating and device control.
RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
EXECUTE, WRITE_FILE, READ_FILE, READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PATH_BENEATH = 1
ALL_OF_NETWORK, ALL_SCOPES = 0b11, 0b11


class ConfinementError(Exception):
    """This machine cannot keep a promise of the sandbox; nothing was run."""


def machine() -> tuple[int, int]:
    """Column of the tables and the kernel's name of this processor.

    Raises:
        ConfinementError: if it is another one, or another system.
    """
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        raise ConfinementError(f"{sys.platform} on {platform.machine()}: needs Linux on x86-64 or arm64")
    return ARCHITECTURES[platform.machine()]


def limit(order: dict[str, Any]) -> None:
    """Limits memory, processor time, the size of files and their number; no core dumps."""
    for kind, most in (
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_CPU, order["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, order["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


class Kernel:
    """System calls that Python has no names for.

    Raises:
        ConfinementError: by every call that fails, with the kernel's reason.
    """

    def __init__(self) -> None:
        self.column, self.architecture = machine()
        self.library = ctypes.CDLL(None, use_errno=True)

    def call(self, name: str, *arguments: Any) -> int:
        """Makes a system call of the table."""
        number = NUMBERS[name][self.column]
        return self.checked(name, self.library.syscall(ctypes.c_long(number), *arguments))

    def control(self, option: int, *values: Any) -> None:
        """Changes an attribute of this process (prctl)."""
        padded = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (*values, 0, 0, 0, 0)[:4]]
        self.checked(f"prctl({option})", self.library.prctl(option, *padded))

    def checked(self, name: str, status: int) -> int:
        """The status, if it is no error."""
        if status < 0:
            raise ConfinementError(f"{name}: {os.strerror(ctypes.get_errno())}")
        return status


def drop_capabilities(kernel: Kernel) -> None:
    """Gives up the rights of an administrator; the user stays who they were."""
    header = struct.pack("=Ii", 0x20080522, 0)
    kernel.checked("capset", kernel.library.capset(header, bytes(24)))


def restrict_files(kernel: Kernel, folder: str, readable: list[str]) -> None:
    """Leaves the folder for reading and writing, the other paths for reading; nothing else in any file system."""
    version = kernel.call("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(1))
    rights = RIGHTS_BY_VERSION[min(version, max(RIGHTS_BY_VERSION))]
    attributes = struct.pack("=Q", rights)
    attributes += struct.pack("=Q", ALL_OF_NETWORK) if version >= 4 else b""
    attributes += struct.pack("=Q", ALL_SCOPES) if version >= 6 else b""
    size = ctypes.c_size_t(len(attributes))
    ruleset = kernel.call("landlock_create_ruleset", attributes, size, ctypes.c_uint(0))
    reading = READ_FILE | READ_DIRECTORY | EXECUTE
    allowed = [(path, reading) for path in readable]
    allowed += [(path, READ_FILE | WRITE_FILE) for path in DEVICES]
    allowed.append((folder, rights))
    for path, wanted in allowed:
        if not os.path.exists(path):
            continue
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        granted = wanted & rights & (~0 if os.path.isdir(path) else OF_FILES)
        rule = struct.pack("=Qi", granted, descriptor)
        kernel.call("landlock_add_rule", ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint(0))
        os.close(descriptor)
    kernel.call("landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction of a filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def filter_program(column: int, architecture: int, process: int) -> bytes:
    """The filter of system calls, in classic BPF.

    Args:
        column: Of the tables of numbers.
        architecture: As the kernel names it; calls of another one kill the process.
        process: Id of the only process that signals may go to.
    """
    fail = instruction(RETURN, FAIL | errno.EPERM)
    allow = instruction(RETURN, ALLOW)
    number = instruction(LOAD, NUMBER_AT)

    def case(name: str, *body: bytes) -> bytes:
        """Body for one call; whatever falls out of it must return."""
        return instruction(EQUAL, NUMBERS[name][column], 0, len(body)) + b"".join(body)

    program = instruction(LOAD, ARCHITECTURE_AT) + instruction(EQUAL, architecture, 1, 0) + instruction(RETURN, KILL)
    program += number + instruction(AT_LEAST, X32_CALLS, 0, 1) + instruction(RETURN, KILL)
    for columns in DENIED.values():
        denied = columns[column]
        if denied is not None:
            program += instruction(EQUAL, denied, 0, 1) + fail
    # Threads are made by `clone`; the C library takes it where `clone3`, whose flags no filter can see, is missing.
    program += case("clone3", instruction(RETURN, FAIL | errno.ENOSYS))
    program += case("clone", instruction(LOAD, ARGUMENTS_AT), instruction(ANY_BIT, CLONE_THREAD, 0, 1), allow, fail)
    program += case("tgkill", instruction(LOAD, ARGUMENTS_AT), instruction(EQUAL, process, 0, 1), allow, fail)
    # Limits may be read: the pointer to new ones is null, in both halves.
    program += case(
        "prlimit64",
        instruction(LOAD, ARGUMENTS_AT + 16),
        instruction(EQUAL, 0, 0, 3),
        instruction(LOAD, ARGUMENTS_AT + 20),
        instruction(EQUAL, 0, 0, 1),
        allow,
        fail,
    )
    return program + allow


def filter_calls(kernel: Kernel) -> None:
    """Refuses the system calls of the table, for good."""
    program = ctypes.create_string_buffer(filter_program(kernel.column, kernel.architecture, os.getpid()))
    count = (len(program) - 1) // 8

    class Header(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    header = Header(count, ctypes.cast(program, ctypes.c_void_p))
    kernel.control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(header))


def confine(order: dict[str, Any]) -> None:
    """Gives up everything that the program must not have.

    Raises:
        ConfinementError: naming what this machine cannot do.
    """
    kernel = Kernel()
    kernel.control(PR_SET_PDEATHSIG, SIGKILL)
    kernel.control(PR_SET_NO_NEW_PRIVS, 1)
    limit(order)
    restrict_files(kernel, order["folder"], order["readable"])
    drop_capabilities(kernel)
    filter_calls(kernel)


def main(text: str) -> None:
    """Confines this process and runs the program; says on the verdict's pipe when it begins and when it has ended.

    The word that says that it ended well waits in another pipe until then: a program that leaves before its last
    line, with whatever exit status, has not said it.

    Args:
        text: The order, JSON of `sandbox.py`.
    """
    order = json.loads(text)
    os.chdir(order["folder"])
    try:
        confine(order)
    except ConfinementError as error:
        print(error, file=sys.stderr)
        return
    os.write(order["verdict"], CONFINED)
    sys.argv = [order["program"]]
    runpy.run_path(order["program"], run_name="__main__")
    os.write(order["verdict"], os.read(order["word"], 64))


if __name__ == "__main__":
    main(sys.argv[1])
