"""What tiktoken's regular expressions take for white space, letters and numbers, as ranges of code points.

`python -m tests.data_tools.tokenizer.pattern_sets > csrc/pattern_ranges.h` writes the kernels' table again, for a
tiktoken that knows a later Unicode.
"""

import tiktoken

PATTERNS = {"space": r"\s", "letter": r"\p{L}", "number": r"\p{N}"}
_BEGIN = """\
// What tiktoken's regular expressions take for white space, letters and numbers: first and last code point of ranges.
// Made by `python -m tests.data_tools.tokenizer.pattern_sets`.
#pragma once

#include <cstdint>

namespace qwen_data {

struct CodePointRange {
    std::uint32_t first;
    std::uint32_t last;
};
"""
_END = "\n}  // namespace qwen_data"
_BYTES = {bytes([value]): value for value in range(256)}


def code_points(pattern: str) -> list[int]:
    """The code points that `pattern` matches, ascending."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    # With the 256 bytes for a vocabulary, the ids are the bytes of what the pattern finds; all else is left out.
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=_BYTES, special_tokens={})
    return list(map(ord, bytes(encoding.encode_ordinary(everything)).decode()))


def ranges(codes: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of `codes`."""
    found: list[tuple[int, int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def main() -> None:
    """Prints the table."""
    print(_BEGIN)
    for name, pattern in PATTERNS.items():
        print(f"constexpr CodePointRange k{name.capitalize()}s[] = {{")
        line = "   "
        for first, last in ranges(code_points(pattern)):
            entry = f" {{0x{first:X}, 0x{last:X}}},"
            if len(line) + len(entry) > 120:
                print(line)
                line = "   "
            line += entry
        print(f"{line}\n}};")
    print(_END)


if __name__ == "__main__":
    main()
