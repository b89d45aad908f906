// Sixty-four bytes of text, told apart all at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "byte_runs.h"

namespace qwen_data {

#if defined(__SSE2__)

// A bit for each byte, that of the first one lowest.
struct AsciiBlock {
    static constexpr std::ptrdiff_t kBytes = 64;

    std::uint64_t letters = 0;
    std::uint64_t numbers = 0;
    std::uint64_t blanks = 0;       // U+0020
    std::uint64_t spaces = 0;       // white space of any kind
    std::uint64_t line_ends = 0;    // \r and \n
    std::uint64_t apostrophes = 0;
    std::uint64_t wide = 0;         // bytes of characters that are not ASCII

    // Of the kBytes bytes from `p` on.
    explicit AsciiBlock(const char* p) {
        for (int i = 0; i < kBytes; i += 16) {
            const Lanes16 bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i));
            const auto put = [i](std::uint64_t& bits, Lanes16 lanes) {
                bits |= static_cast<std::uint64_t>(static_cast<unsigned>(_mm_movemask_epi8(lanes))) << i;
            };
            const auto between = [bytes](char first, char last) {
                return below(_mm_sub_epi8(bytes, _mm_set1_epi8(first)), static_cast<unsigned char>(last - first + 1));
            };
            const Lanes16 lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
            const Lanes16 blank = equal(bytes, ' ');
            put(letters, below(_mm_sub_epi8(lower, _mm_set1_epi8('a')), 26));
            put(numbers, between('0', '9'));
            put(blanks, blank);
            put(spaces, _mm_or_si128(blank, between('\t', '\r')));
            put(line_ends, _mm_or_si128(equal(bytes, '\n'), equal(bytes, '\r')));
            put(apostrophes, equal(bytes, '\''));
            put(wide, bytes);
        }
    }
};

#endif

}  // namespace qwen_data
