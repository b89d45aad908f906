// Where the long strings of a JSON text are.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

namespace qwen_data {

// First and last-plus-one byte, quotes left out, of every string literal of at least `min_bytes` bytes as written.
//
// Right for valid JSON. Of an invalid text everything outside the ranges stands as it was, so that a parser given the
// text without them still finds the mistake; a string without an end goes to the end of the text.
std::vector<std::pair<std::size_t, std::size_t>> json_strings(std::string_view text, std::size_t min_bytes);

}  // namespace qwen_data
