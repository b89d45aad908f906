// Text to the ids of a byte-pair vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "piece_merger.h"
#include "pretokens.h"
#include "rank_table.h"
#include "views.h"
#include "word_cache.h"

namespace qwen_data {

// Encodes as tiktoken's `encode_ordinary` does with Qwen's pattern and any vocabulary: a pre-token that is a token has its
// rank, any other one the ranks that joining its byte pairs leaves. Nothing in a text is special.
//
// Time grows with the text as n log n at worst, whatever it is made of; memory does not, but for the longest pre-token.
class TextEncoder {
  public:
    // What one thread works with.
    struct Scratch {
        WordCache words;
        PieceMerger merger;
    };

    // See RankTable for what is thrown.
    explicit TextEncoder(View<const std::string_view> tokens) : ranks_(tokens) {}

    const RankTable& ranks() const { return ranks_; }

    // Writes the ids of [p, end), valid UTF-8 with kPadding readable bytes behind it, to `out`, which has room for kSlack
    // more of them than the text has bytes; returns the end of what it wrote.
    std::uint32_t* encode(const char* p, const char* end, std::uint32_t* out, Scratch& scratch) const;

    static constexpr std::size_t kSlack = kSlackTokens;

  private:
    // A pre-token, or a part of one that is encoded by itself.
    struct Unit {
        const char* p;
        std::size_t size;
        bool is_part;
        bool is_characters;  // which may be begun with instead of bytes
        WordKey key;  // of those that the cache may have
        std::uint64_t hash = 0;
    };
    class Units;

    std::uint32_t* encode_unit(const Unit& unit, std::uint32_t* out, Scratch& scratch) const;
    void cut(const char* p, std::size_t size, Units& units) const;

    PretokenPattern pattern_;
    RankTable ranks_;
};

}  // namespace qwen_data
