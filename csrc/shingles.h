// Hashes of runs of words in normalised text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "characters.h"
#include "text_hash.h"
#include "words.h"

namespace qwen_data {

// Multiplier of the polynomial over word hashes; odd, so that it can be undone modulo 2^64.
constexpr std::uint64_t kShingleBase = 0xD1342543DE82EF95ULL;

// hash_bytes of each word of `normalized` that is not a symbol, appended to `words`.
inline void append_word_hashes(const Characters& characters, std::string_view normalized,
                               std::vector<std::uint64_t>& words) {
    for_each_word(characters, normalized, [&](const Word& word) {
        if (!word.is_symbol) {
            words.push_back(hash_bytes(word.begin, static_cast<std::size_t>(word.end - word.begin)));
        }
    });
}

// Calls visit(position, hash) for each run of n words: hash = mix64(sum of words[position + i] * B^(n - 1 - i)) modulo
// 2^64, rolled along in constant time a word (Karp and Rabin 1987). None if there are fewer than n words or n is 0.
template <typename Visit>
void for_each_shingle(const std::vector<std::uint64_t>& words, std::size_t n, Visit&& visit) {
    if (n == 0 || words.size() < n) {
        return;
    }
    std::uint64_t leaving_factor = 1;
    std::uint64_t polynomial = 0;
    for (std::size_t i = 0; i < n; ++i) {
        leaving_factor *= kShingleBase;
        polynomial = polynomial * kShingleBase + words[i];
    }
    visit(std::size_t{0}, mix64(polynomial));
    for (std::size_t i = n; i < words.size(); ++i) {
        polynomial = polynomial * kShingleBase + words[i] - words[i - n] * leaving_factor;
        visit(i - n + 1, mix64(polynomial));
    }
}

}  // namespace qwen_data
