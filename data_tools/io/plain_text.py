"""Text for a terminal: what a file holds must not move the cursor, change colours or hide what stands there."""

import re

# Control characters but tab and line end, those of Latin-1, marks that turn the direction of writing, half pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """A message or a line of output as it can be shown: control characters as ``\\x1b``, the rest as it is."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))
