// Pre-tokens of Qwen's tokenizer: the pieces of a text that byte pairs are joined in, never across.
#pragma once

#include <cstdint>
#include <string_view>

#include "views.h"

namespace qwen_data {

// What the pattern tells apart; the table of all code points is built by data_tools.tokenizer.pretokens.
enum class PatternKind : std::uint8_t { other = 0, space = 1, letter = 2, number = 3 };

// Where the pre-token that begins at `p` ends; p != end, [p, end) is valid UTF-8, `kinds` has a byte for each code point.
// The pattern is `data_tools.tokenizer.qwen.PATTERN`, its alternatives tried in order:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
const char* pretoken_end(View<const std::uint8_t> kinds, const char* p, const char* end);

// Calls visit(pre-token) for each pre-token of `text` (valid UTF-8), in order; together they are the text.
template <typename Visit>
void for_each_pretoken(View<const std::uint8_t> kinds, std::string_view text, Visit&& visit) {
    const char* p = text.data();
    const char* const end = p + text.size();
    while (p != end) {
        const char* const stop = pretoken_end(kinds, p, end);
        visit(std::string_view(p, static_cast<std::size_t>(stop - p)));
        p = stop;
    }
}

}  // namespace qwen_data
