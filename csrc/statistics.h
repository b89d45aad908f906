// Counts of one document that the rule filters compare with their thresholds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "characters.h"

namespace qwen_data {

// Order of the columns; names and definitions stand in data_tools/text/statistics.py.
enum Statistic : std::size_t {
    kCharacters,
    kWords,
    kPlainWords,
    kPlainWordCharacters,
    kCjkWords,
    kLetterWords,
    kSpacedWords,
    kSpacedLetterWords,
    kStopWords,
    kHashes,
    kEllipses,
    kLines,
    kBulletLines,
    kEllipsisLines,
    kParagraphs,
    kDuplicateParagraphs,
    kDuplicateParagraphCharacters,
    kSegments,
    kDuplicateSegments,
    kDuplicateSegmentCharacters,
    kFullLines,
    kPunctuatedLines,
    kShortLines,
    kDuplicateFullLineCharacters,
    kNewlines,
    kTop2gram,
    kTop3gram,
    kTop4gram,
    kDuplicate5grams,
    kDuplicate6grams,
    kDuplicate7grams,
    kDuplicate8grams,
    kDuplicate9grams,
    kDuplicate10grams,
    kNumStatistics,
};

// n-grams are counted within the first kMaxNgramWords words, which bounds the memory of a scratch to about 100 MB.
constexpr std::size_t kMaxNgramWords = 1 << 20;

// Counts how often 64-bit keys occur; open addressing with linear probing.
class KeyCounter {
  public:
    // Forgets everything and makes room for `keys` different keys.
    void reset(std::size_t keys);
    // Counts one more occurrence; returns the slot of the key, valid until reset().
    std::size_t add(std::uint64_t key);
    std::uint32_t count(std::size_t slot) const { return counts_[slot]; }

  private:
    std::vector<std::uint64_t> keys_;
    std::vector<std::uint32_t> counts_;
    std::size_t mask_ = 0;
};

struct StatisticsOptions {
    // Throws std::invalid_argument for more than 64 stop words.
    StatisticsOptions(const std::vector<std::string>& words, std::uint32_t short_line_length);

    std::vector<std::uint64_t> stop_words;  // hash_bytes of each.
    std::array<bool, 256> stop_words_by_byte{};  // True where a stop word's hash has that lowest byte.
    std::uint32_t short_line_length;
};

struct StatisticsScratch {
    struct Gram {
        std::uint32_t position;
        std::uint64_t hash;
    };
    std::vector<std::uint64_t> words;
    std::vector<std::uint64_t> ends;    // Code points of the first i words.
    std::vector<std::uint64_t> joined;  // The same with the spaces that join them.
    std::vector<Gram> grams;
    std::vector<std::size_t> slots;
    KeyCounter counter;
};

// Fills `out` with the statistics of `text`, which must be valid UTF-8.
void compute_statistics(const Characters& characters, std::string_view text, const StatisticsOptions& options,
                        StatisticsScratch& scratch, std::int64_t* out);

}  // namespace qwen_data
