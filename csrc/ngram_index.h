// The n-grams of benchmark items, and their occurrences in documents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "characters.h"

namespace qwen_data {

struct NgramMatch {
    std::uint32_t item;
    std::uint32_t first_character;  // In code points of the document.
    std::uint32_t end_character;    // One behind the last.
};

struct MatchScratch {
    std::string normalized;
    std::vector<std::uint32_t> sources;
    std::vector<std::uint64_t> words;
    std::vector<std::uint32_t> begins;
    std::vector<std::uint32_t> ends;
};

// Hash table from n-gram to the benchmark items that hold it. Items shorter than n words have n-grams of short_n words;
// those that are shorter still are one n-gram of their own length.
class NgramIndex {
  public:
    // Throws std::invalid_argument unless 1 <= min_words <= short_n <= n.
    NgramIndex(std::size_t n, std::size_t min_words, std::size_t short_n);

    // Adds an item, in normalised form (Characters::normalize). Returns the number of its n-grams; 0 if it has fewer than
    // min_words words and is left out.
    std::size_t add(const Characters& characters, std::string_view normalized, std::uint32_t item);

    // Appends the matches of `text` to `matches`, ordered by n-gram length, position, item. If `is_normalized`, the text
    // is taken as it is, else normalised first; positions are those of `text` in either case.
    void find(const Characters& characters, std::string_view text, bool is_normalized, MatchScratch& scratch,
              std::vector<NgramMatch>& matches) const;

    std::size_t size() const { return num_keys_; }

  private:
    // Items of one n-gram are a chain through `next`.
    struct Entry {
        std::uint64_t key;
        std::uint32_t item;
        std::uint32_t next;
    };

    void insert(std::uint64_t key, std::uint32_t item);
    void grow();
    std::uint32_t lookup(std::uint64_t key) const;
    bool may_hold(std::uint64_t key) const { return (filter_[(key >> 6) & filter_mask_] >> (key & 63)) & 1; }

    std::size_t n_;
    std::size_t min_words_;
    std::size_t short_n_;
    std::vector<std::size_t> lengths_;     // n-gram lengths in use, ascending.
    std::vector<Entry> entries_;           // Entry 0 is unused: 0 ends a chain.
    std::vector<std::uint32_t> slots_;     // Open addressing; number of the chain's first entry.
    std::vector<std::uint64_t> filter_;    // One bit a key, 16 bits of room for each: most lookups end here.
    std::size_t filter_mask_ = 0;
    std::size_t num_keys_ = 0;
};

}  // namespace qwen_data
