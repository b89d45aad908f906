// The line rules of C4.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "characters.h"

namespace qwen_data {

struct C4Options {
    std::uint32_t min_words_per_line = 3;
    std::uint32_t max_word_length = 1000;
    std::string page_phrase;                  // Drops the page ("lorem ipsum"); lower case, ASCII.
    std::vector<std::string> line_phrases;    // Drop the line ("javascript", ...); lower case, ASCII.
};

struct C4Page {
    bool has_page_phrase = false;
    bool has_curly_bracket = false;
    std::int64_t num_sentences = 0;  // In the lines that stay.
    std::string kept;                // Those lines, without citation marks, joined by newlines.
};

// Applies the rules line by line until one of them drops the page. `text` must be valid UTF-8.
void clean_c4(const Characters& characters, std::string_view text, const C4Options& options, C4Page& page);

}  // namespace qwen_data
