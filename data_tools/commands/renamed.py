"""Commands that have another name now: the old one still works, and says the new one."""

import sys
from collections.abc import Mapping, Sequence


def with_current_name(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """A command line with today's name of its command; where that is another one, a line on stderr says it.

    Args:
        arguments: the command line without the program's name.
        renamed: old name -> today's.
    """
    if not arguments or arguments[0] not in renamed:
        return list(arguments)
    old, name = arguments[0], renamed[arguments[0]]
    print(f"note: `{old}` is called `{name}` now", file=sys.stderr)
    return [name, *arguments[1:]]
