"""No text makes a text kernel slow: ten times the length takes at most twelve times as long."""

import time
from collections.abc import Callable

import pytest

from data_tools.decontamination import BenchmarkIndex, BenchmarkItem
from data_tools.dedup import normalized_hashes, signatures
from data_tools.filters import FilterSuite
from data_tools.text.languages import looks_like_code
from data_tools.text.normalization import nfc
from data_tools.tokenizer.encoder import qwen_encoder

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
WORK: dict[str, Callable[[str], object]] = {
    "normaliser": nfc,
    "tokenizer": lambda text: qwen_encoder().encode_batch([nfc(text)]),
    "filters": lambda text: FilterSuite().apply([text]),
    "minhash": lambda text: signatures([text]),
    "exact hash": lambda text: normalized_hashes([text]),
    "decontamination": lambda text: BenchmarkIndex([BenchmarkItem("b", "1", ITEM)]).find([text]),
    "code": looks_like_code,
}
# What once made a library or a kernel of this kind slow.
UNITS = {"a": "a", "spaces": " ", "marks": "\u0301\u0316", "joiners": "\u200d"}
FLOOR_SECONDS = 0.01
ATTEMPTS = 5


def seconds(work: Callable[[str], object], text: str) -> float:
    """Processor time, the least of a few: other processes do not count."""
    times = []
    for end in "xyz":  # Another text each time: caches do not count either.
        start = time.process_time()
        work(text + end)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name in WORK for unit in UNITS])
def test_a_megabyte_takes_at_most_twelve_times_as_long_as_a_tenth(name: str, unit: str) -> None:
    def text(num_bytes: int) -> str:
        return UNITS[unit] * (num_bytes // len(UNITS[unit].encode()))

    WORK[name]("warm")
    # A slow spell of the machine passes; work that grows with the square never gets below a hundred.
    ratios = []
    while len(ratios) < ATTEMPTS:
        short, long = (seconds(WORK[name], text(num_bytes)) for num_bytes in (100_000, 1_000_000))
        # What takes no time at all cannot be compared.
        ratios.append(long / max(short, FLOOR_SECONDS / 12))
        if ratios[-1] <= 12:
            return
    pytest.fail(f"{name}, {unit}: {ratios} times as long")
