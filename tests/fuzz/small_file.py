"""A small file that the tools read, and what mutations of it may lead to: success or a documented error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qwen_megatron.errors import CheckpointError, ConfigError, DataError
from tests.fuzz.mutations import bytes_of, values_of

DOCUMENTED = (CheckpointError, ConfigError, DataError)
GIB = 1 << 30
EXAMPLES = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One file and its reader.

    Attributes:
        make: writes what the reader needs besides; gives the file's valid content.
        name: of the file in its folder.
        read: with the folder.
        dump: from values to bytes; None where the content is no JSON or YAML.
    """

    make: Callable[[Path], Any]
    name: str
    read: Callable[[Path], Any]
    dump: Callable[[Any], bytes] | None = lambda value: json.dumps(value).encode()


def lines(value: Any) -> bytes:
    """A value as JSON Lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in (value if isinstance(value, list) else [value]))


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode()


def valid(content: Any) -> Callable[[Path], Any]:
    return lambda folder: content


@contextlib.contextmanager
def one_gibibyte() -> Iterator[None]:
    """No example may map more than one GiB beyond what the process has: it would end in a MemoryError, which is none
    of the documented ones."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_mutations(target: Target, folder: Path) -> None:
    """Reads the file as it is, then mutated.

    Args:
        target: The file.
        folder: A new one.
    """
    folder.mkdir()
    content = target.make(folder)
    path = folder / target.name
    plain = content if target.dump is None else target.dump(content)

    def outcome(mutated: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(mutated)
        with warnings.catch_warnings(), contextlib.suppress(*DOCUMENTED):
            warnings.simplefilter("ignore")
            target.read(folder)

    @settings(
        max_examples=EXAMPLES if target.dump is None else 2 * EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if target.dump is not None and data.draw(st.booleans()):
            outcome(dumped(target.dump, values_of(data.draw, content)))
        else:
            outcome(bytes_of(data.draw, plain))

    # The valid file is read as it is: what refuses everything would pass too.
    with one_gibibyte():
        path.write_bytes(plain)
        if target.name != "metadata.json":
            target.read(folder)
        check()


def dumped(dump: Callable[[Any], bytes], value: Any) -> bytes:
    """YAML has no half of a surrogate pair."""
    try:
        return dump(value)
    except (UnicodeEncodeError, yaml.YAMLError):
        return b"\xed\xa0\x80"
