// What the tokenizer's pattern tells apart.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_data {

// `\s`, `\p{L}`, `\p{N}`, and none of them, as tiktoken's regular expressions have them.
enum class PatternKind : std::uint8_t { other = 0, space = 1, letter = 2, number = 3 };

// The kind of each code point, [0x110000]. The first call makes the table.
const PatternKind* pattern_kinds();

}  // namespace qwen_data
