"""Valid files made invalid, by bytes and by values."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = b"[" * 5000 + b"]" * 5000
ODD_BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"\x1b[31m",
    b"\n",
    b'"',
    b"{",
    b"]",
    b",",
    b"1e400",
    b"NaN",
    DEEP,
]
ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    1e-320,
    1e308,
    2**31,
    2**40,
    2**63,
    2**64,
    10**400,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\x1b[31m",
    "\ud800",
    "x" * 5000,
    "${training.seed}",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"x": [1, "y"]},
    [0] * 1000,
    json.loads("[" * 200 + "]" * 200),
]


def bytes_of(draw: st.DrawFn, content: bytes) -> bytes:
    """A few places changed: cut out, written over, doubled, or filled with what parsers dislike."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 64, 1 << 20])))
        new = draw(st.sampled_from([*ODD_BYTES, content[start:stop] * 2]) | st.binary(max_size=8))
        content = content[:start] + new + content[stop:]
    return content


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside of a JSON value."""
    found: list[tuple[Any, Any]] = []
    inside = [value]
    while inside:
        one = inside.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        found += [(one, key) for key in keys]
        inside += [one[key] for key in keys if isinstance(one[key], dict | list) and one[key]]
    return found


def values_of(draw: st.DrawFn, value: Any) -> Any:
    """A few values replaced, taken away, or entered under other names."""
    value = json.loads(json.dumps({"": value}))
    for _ in range(draw(st.integers(1, 3))):
        known = places(value)
        if not known:
            break
        container, key = known[draw(st.integers(0, len(known) - 1))]
        odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "remove" and key != "":
            del container[key]
        elif kind == "add" and isinstance(container, dict):
            container[draw(st.sampled_from(["x", "../x", "\0", "1", "999999999999", "y" * 300]))] = odd
        else:
            container[key] = odd
    return value.get("", {})
