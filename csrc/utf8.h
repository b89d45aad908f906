// Reading and writing of UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace qwen_data {

// Decodes the code point at `p`, which must be valid UTF-8, and advances `p` behind it.
inline std::uint32_t next_code_point(const char*& p) {
    const auto byte = [](char c) { return static_cast<std::uint32_t>(static_cast<unsigned char>(c)); };
    const std::uint32_t lead = byte(p[0]);
    if (lead < 0x80) {
        p += 1;
        return lead;
    }
    if (lead < 0xE0) {
        const std::uint32_t c = (lead & 0x1F) << 6 | (byte(p[1]) & 0x3F);
        p += 2;
        return c;
    }
    if (lead < 0xF0) {
        const std::uint32_t c = (lead & 0x0F) << 12 | (byte(p[1]) & 0x3F) << 6 | (byte(p[2]) & 0x3F);
        p += 3;
        return c;
    }
    const std::uint32_t c =
        (lead & 0x07) << 18 | (byte(p[1]) & 0x3F) << 12 | (byte(p[2]) & 0x3F) << 6 | (byte(p[3]) & 0x3F);
    p += 4;
    return c;
}

inline bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Number of code points in valid UTF-8.
inline std::size_t count_code_points(const char* p, const char* end) {
    std::size_t count = 0;
    for (; p != end; ++p) {
        count += !is_continuation(*p);
    }
    return count;
}

// Offset of the first byte that is not part of valid UTF-8 (Unicode 15, table 3-7), or `size`.
std::size_t first_invalid_utf8(const char* data, std::size_t size);

}  // namespace qwen_data
