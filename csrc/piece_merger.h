// Joining the byte pairs of one piece of text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rank_table.h"

namespace qwen_data {

// Joins neighbours whose union is the token of lowest rank, the leftmost first, until no union of two neighbours is a
// token: tiktoken's rule, for any vocabulary. Short pieces begin with the pairs of bytes that are joined whatever else is,
// and are searched anew for each union; of long ones the unions are kept in order.
class PieceMerger {
  public:
    // Writes the ranks of the `size` bytes at `p`, at least one, to `out`, with room for size + kSlackTokens of them;
    // returns the end of what it wrote. kPadding bytes behind the piece are readable.
    std::uint32_t* merge(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out);

    // The same of a piece of characters that may be begun with (RankTable::of_character), where no token is cut.
    std::uint32_t* merge_characters(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out);

    // Unions that were looked up so far: the work done, for tests of its growth.
    std::uint64_t num_lookups() const { return num_lookups_; }

  private:
    static constexpr std::size_t kShortBytes = 64;

    // Neighbouring parts of a short piece: part i is the bytes from starts[i] to starts[i + 1], unions[i] the rank of its
    // union with the next part. Up to four behind the last one are moved with it, whatever they are.
    struct Parts {
        std::uint32_t ids[kShortBytes + 4];
        std::uint32_t unions[kShortBytes + 4];
        std::uint8_t starts[kShortBytes + 5];
        std::size_t count;

        // Joins part i, which becomes `rank`, with the next one.
        void join(std::size_t i, std::uint32_t rank);
    };

    std::uint32_t find_union(const RankTable& ranks, const char* p, std::size_t size) {
        ++num_lookups_;
        return ranks.find(p, size);
    }
    RankTable::Sought begin_union(const RankTable& ranks, const char* p, const Parts& parts, std::size_t part);
    std::uint32_t* merge_parts(const RankTable& ranks, const char* p, Parts& parts, std::uint32_t* out);
    std::uint32_t* merge_long(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out);

    // A part of a long piece, at the place of its first byte; what is joined to a part before it is passed over.
    struct LongPart {
        std::uint32_t next;
        std::uint32_t before;
        std::uint32_t union_rank;
    };
    // Those of longer pieces are given back at once: 24 MiB.
    static constexpr std::size_t kMostKept = std::size_t{1} << 21;

    std::uint64_t num_lookups_ = 0;
    std::vector<LongPart> parts_;
};

}  // namespace qwen_data
