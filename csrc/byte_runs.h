// Runs of bytes of one kind, sixteen at a time where the processor has SSE2 (all of x86-64).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace qwen_data {

inline bool is_ascii_letter(char c) {
    return static_cast<unsigned char>((static_cast<unsigned char>(c) | 0x20) - 'a') < 26;
}

// Skips bytes as long as `is_one(byte)` holds. With SSE2 `lanes(sixteen bytes)` gives 0xFF in the lanes where it holds.
template <typename IsOne, typename Lanes>
inline const char* behind_run(const char* p, const char* end, const IsOne& is_one, [[maybe_unused]] const Lanes& lanes) {
#if defined(__SSE2__)
    while (end - p >= 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        const unsigned others = ~static_cast<unsigned>(_mm_movemask_epi8(lanes(bytes))) & 0xFFFF;
        if (others != 0) {
            return p + __builtin_ctz(others);
        }
        p += 16;
    }
#endif
    while (p != end && is_one(*p)) {
        ++p;
    }
    return p;
}

#if defined(__SSE2__)
using Lanes16 = __m128i;
// 0xFF where a byte, as unsigned, is below `limit` (1 to 255).
inline Lanes16 below(Lanes16 bytes, unsigned char limit) {
    const Lanes16 most = _mm_set1_epi8(static_cast<char>(limit - 1));
    return _mm_cmpeq_epi8(_mm_min_epu8(bytes, most), bytes);
}
inline Lanes16 equal(Lanes16 bytes, char c) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)); }
#else
struct Lanes16 {};
#endif

// Behind the ASCII letters that begin at `p`.
inline const char* behind_ascii_letters(const char* p, const char* end) {
    return behind_run(p, end, is_ascii_letter, []([[maybe_unused]] Lanes16 bytes) {
#if defined(__SSE2__)
        const Lanes16 lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        return below(_mm_sub_epi8(lower, _mm_set1_epi8('a')), 26);
#else
        return bytes;
#endif
    });
}

// Behind the spaces (U+0020) that begin at `p`.
inline const char* behind_blanks(const char* p, const char* end) {
    return behind_run(
        p, end, [](char c) { return c == ' '; },
        []([[maybe_unused]] Lanes16 bytes) {
#if defined(__SSE2__)
            return equal(bytes, ' ');
#else
            return bytes;
#endif
        });
}

// The first byte at or after `p` that is not below `limit`, or `end`.
inline const char* first_not_below(const char* p, const char* end, unsigned char limit) {
    return behind_run(
        p, end, [limit](char c) { return static_cast<unsigned char>(c) < limit; },
        [limit]([[maybe_unused]] Lanes16 bytes) {
#if defined(__SSE2__)
            return below(bytes, limit);
#else
            return bytes;
#endif
        });
}

// How many of the bytes from `p` to `end` are `c`.
inline std::size_t count_byte(const char* p, const char* end, char c) {
    std::size_t count = 0;
#if defined(__SSE2__)
    while (end - p >= 16) {
        // In each lane up to 255.
        __m128i lanes = _mm_setzero_si128();
        for (int i = 0; i < 255 && end - p >= 16; ++i, p += 16) {
            lanes = _mm_sub_epi8(lanes, equal(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), c));
        }
        const __m128i halves = _mm_sad_epu8(lanes, _mm_setzero_si128());
        count += static_cast<std::size_t>(_mm_cvtsi128_si32(halves) + _mm_extract_epi16(halves, 4));
    }
#endif
    for (; p != end; ++p) {
        count += *p == c;
    }
    return count;
}

}  // namespace qwen_data
