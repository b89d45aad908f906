// Byte-pair merges learned on counted pre-tokens, on top of a vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "byte_pairs.h"
#include "pretoken_counts.h"
#include "views.h"

namespace qwen_data {

struct LearningRules {
    std::uint64_t min_count;      // A pair that occurs less often, weights aside, is not joined. At least 1.
    std::size_t max_token_bytes;  // Nor is one whose union is longer.
    std::size_t threads;
};

// Joins, one merge after the other, the pair of neighbours that weighs most: the sum of its occurrences times the factor
// of their group. Of equals the one with the smaller left id, then the smaller right id. Occurrences that overlap (twice
// "aa" in "aaa") count each. The union gets the next id.
//
// Pre-tokens are encoded with the vocabulary once and lie in one array of symbols. Each pair knows where it occurs, so
// that a merge costs its occurrences; counts of neighbours change by what it changes. Pairs wait in a heap by their weight
// when they came; weights only shrink from then on, so the top is looked up and goes back if it has become lighter. All
// of it is integers: nothing depends on threads or on the order of pre-tokens.
class MergeLearner {
  public:
    // `factors` has one for each group, at least 1. Copies what it needs of `counts`. Calls `check` now and then, on any
    // of its threads; what that throws is thrown here. Throws std::invalid_argument if a group has no factor, or if there
    // is too much text to count.
    MergeLearner(const BytePairs& base, const PretokenCounts& counts, View<const std::uint64_t> factors,
                 const LearningRules& rules, const std::function<void()>& check);

    // Learns up to `most` merges, and returns how many; fewer: no pair is left that may be joined.
    std::size_t learn(std::size_t most);

    struct Merge {
        std::uint32_t left;
        std::uint32_t right;
        std::uint64_t count;  // Occurrences, weights aside.
    };

    // In the order of their ids, the first one that of the first token after the base.
    const std::vector<Merge>& merges() const { return merges_; }

    // Tokens that the texts of each group have now.
    const std::vector<std::uint64_t>& num_tokens() const { return num_tokens_; }

  private:
    struct Word {
        std::uint64_t count;
        std::uint64_t weight;
        std::uint32_t group;
    };

    struct Pair {
        std::uint32_t left = 0;
        std::uint32_t right = 0;
        std::uint64_t count = 0;
        std::uint64_t weight = 0;
        std::vector<std::uint32_t> places;  // of the left symbol, ascending; some no longer hold
    };

    struct Waiting {
        std::uint64_t weight;
        std::uint32_t left;
        std::uint32_t right;
        std::uint32_t pair;

        // Whether this one is joined after `other`.
        bool operator<(const Waiting& other) const {
            if (weight != other.weight) {
                return weight < other.weight;
            }
            return left != other.left ? left > other.left : right > other.right;
        }
    };

    void encode_words(const BytePairs& base, const PretokenCounts& counts, View<const std::uint64_t> factors,
                      const std::function<void()>& check);
    void count_pairs(const std::function<void()>& check);
    void keep(Pair&& pair);
    void join(Pair pair);
    void gain(std::vector<std::uint32_t>& numbers, std::uint32_t neighbour, std::uint32_t left, std::uint32_t right,
              std::uint32_t place);
    void lose(std::uint32_t left, std::uint32_t right, std::uint32_t newest, const Word& word);

    LearningRules rules_;
    std::vector<Word> words_;
    // Of each place: the symbol that begins there (kNone inside a symbol), where the next one and the one before begin in
    // the same word, and the word.
    std::vector<std::uint32_t> symbols_;
    std::vector<std::uint32_t> next_;
    std::vector<std::uint32_t> before_;
    std::vector<std::uint32_t> word_of_;

    std::vector<std::uint32_t> lengths_;  // of the tokens in bytes
    std::vector<Pair> pairs_;
    PairMap numbers_;  // of the pairs
    std::vector<Waiting> heap_;
    std::vector<Merge> merges_;
    std::vector<std::uint64_t> num_tokens_;  // [groups]

    // During one merge: the pairs that have the new token in them, by their other token.
    std::vector<Pair> fresh_;
    std::vector<std::uint32_t> fresh_left_;   // token -> number in fresh_ of (token, new)
    std::vector<std::uint32_t> fresh_right_;  // token -> number in fresh_ of (new, token)
};

}  // namespace qwen_data
