// Ends of lines and texts.
#pragma once

#include <cstdint>
#include <string_view>

#include "characters.h"
#include "utf8.h"

namespace qwen_data {

// The last code point of `text`, which must not be empty.
inline std::uint32_t last_code_point(std::string_view text) {
    const char* last = text.data() + text.size() - 1;
    while (is_continuation(*last)) {
        --last;
    }
    return next_code_point(last);
}

// `text` as str.strip() gives it.
inline std::string_view strip(const Characters& characters, std::string_view text) {
    const char* begin = text.data();
    const char* end = begin + text.size();
    while (begin != end) {
        const char* next = begin;
        if (!characters.is_space(next_code_point(next))) {
            break;
        }
        begin = next;
    }
    while (end != begin) {
        const char* last = end - 1;
        while (is_continuation(*last)) {
            --last;
        }
        const char* after = last;
        if (!characters.is_space(next_code_point(after))) {
            break;
        }
        end = last;
    }
    return {begin, static_cast<std::size_t>(end - begin)};
}

// True for the characters at which str.splitlines() ends a line; "\r\n" is one end.
inline bool is_line_break(std::uint32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace qwen_data
