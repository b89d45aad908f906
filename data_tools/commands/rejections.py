"""How many rejected records are too many, and why a broken stream always is."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from data_tools.corpus.rejections import RejectionLog, broken_streams
from data_tools.errors import DataError
from data_tools.io.streams import BROKEN

_MOST_NAMED = 5


class RejectionLimit:
    """How many records may be rejected, as a number or as a share."""

    def __init__(self, text: str, given_as: str = "--max-bad ") -> None:
        """Parses "100", "0.1%" or "0.001".

        Args:
            text: the limit.
            given_as: what stands before it where the user wrote it.
        Raises:
            ValueError: it is none of these, negative, or a share above 1.
        """
        self.shown = f"{given_as}{text}"
        self._share: float | None = None
        self._number = 0
        if text.endswith("%") or "." in text:
            self._share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if not 0 <= self._share <= 1:
                raise ValueError
        else:
            self._number = int(text)
            if self._number < 0:
                raise ValueError

    def exceeded(self, rejected: int, records: int) -> bool:
        """Whether ``rejected`` of ``records`` is too many."""
        return rejected > (self._number if self._share is None else self._share * records)


def rejection_limit(text: str) -> RejectionLimit:
    """The limit that an argument names, a number or a share."""
    try:
        return RejectionLimit(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a limit; write a number (100) or a share (0.1%)") from error


def check_rejected(
    rejected: Mapping[str, int], num_good: int, limit: RejectionLimit | None, listed: Path, output: str
) -> None:
    """Fails a command that has written its output, if too much of its input is not in it.

    A stream that breaks is no record: nobody knows how many are lost with it, so that it fails whatever the limit.

    Args:
        rejected: reason -> records.
        num_good: records that were not rejected.
        limit: of the bad records; None for none.
        listed: the list of what was rejected.
        output: what holds the other records, for the message.
    Raises:
        DataError: an input file is damaged, which is named, or the limit is exceeded.
    """
    num_broken = sum(rejected.get(reason, 0) for reason in BROKEN)
    num_bad = sum(rejected.values()) - num_broken
    problems = []
    if num_broken:
        named = [
            f"{one.file} (from line or row {one.line} on: {one.detail})" for one in broken_streams(listed, _MOST_NAMED)
        ]
        if num_broken > _MOST_NAMED:
            named.append(f"and {num_broken - _MOST_NAMED} more, which {listed} names")
        files = "1 input file is" if num_broken == 1 else f"{num_broken} input files are"
        problems.append(f"{files} damaged: {', '.join(named)}; get such a file again or leave it out")
    if limit is not None and limit.exceeded(num_bad, num_good + num_bad):
        problems.append(f"{num_bad} of {num_good + num_bad} records were rejected, more than {limit.shown}")
    if problems:
        raise DataError(f"{'; '.join(problems)}; {output} holds the others; {listed} lists what was rejected")


def reject_status(log: RejectionLog, num_good: int, listed: Path, limit: RejectionLimit | None) -> int:
    """Says how many records were rejected, and the exit status of a command that has written its output.

    Raises:
        DataError: as `check_rejected`.
    """
    num_rejected = log.counts.total()
    num_records = num_good + num_rejected
    if num_rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(log.counts.items()))
        print(f"qwen-data: rejected {num_rejected:,} of {num_records:,} records ({reasons}): {listed}", file=sys.stderr)
    check_rejected(log.counts, num_good, limit, listed, "the output")
    return 0
