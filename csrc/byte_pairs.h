// A byte-pair vocabulary, and how it encodes a pre-token.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pair_map.h"
#include "views.h"

namespace qwen_data {

// Tokens in the order of their ranks. Encoding joins the pair whose union has the lowest rank, the leftmost first, until
// no two neighbours have a union in the vocabulary: tiktoken's rule.
//
// Every token must be what its own bytes are encoded to by the tokens before it, joined once. Then neighbours whose union
// is a token are always the same two: whatever stands left and right of the union's bytes, no pair was joined across their
// borders, so inside them the same pairs were joined as if they stood alone. So a map of pairs says the same as a map of
// byte strings, and joining a pair never makes a pair of a lower rank.
class BytePairs {
  public:
    // What encode() works with; reused from call to call.
    struct Scratch {
        std::vector<std::uint32_t> next;
        std::vector<std::uint32_t> before;
        std::vector<std::uint64_t> heap;
    };

    // Throws std::invalid_argument, naming the rank, if a token is no union of exactly two others of lower rank, if one
    // comes twice, or if a byte is missing.
    explicit BytePairs(View<const std::string_view> tokens);

    std::size_t size() const { return lengths_.size(); }

    // Bytes of each token.
    const std::vector<std::uint32_t>& lengths() const { return lengths_; }

    // The ids of `text`, which is one pre-token, in place of what `ids` held.
    void encode(std::string_view text, std::vector<std::uint32_t>& ids, Scratch& scratch) const;

  private:
    std::array<std::uint32_t, 256> bytes_{};
    PairMap ranks_;
    std::vector<std::uint32_t> lengths_;
};

}  // namespace qwen_data
