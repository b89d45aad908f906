// The tokens of a byte-pair vocabulary by their bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "large_array.h"
#include "pair_map.h"
#include "views.h"
#include "word_key.h"

namespace qwen_data {

// Which byte strings are tokens, and of which rank. Any rank file will do: nothing is asked of how a token is made of
// others.
class RankTable {
  public:
    // Tokens in the order of their ranks. Throws std::invalid_argument, naming the rank, if one is empty or comes twice,
    // or if a byte is missing.
    explicit RankTable(View<const std::string_view> tokens);

    std::size_t size() const { return starts_.size() - 1; }
    std::size_t longest() const { return longest_; }

    // The rank of one byte, which is always there.
    std::uint32_t of_byte(char byte) const { return bytes_[static_cast<unsigned char>(byte)]; }

    // What is known of two bytes; kNone where there is no such token.
    struct Pair {
        std::uint32_t rank = kNone;
        std::uint32_t early = kNone;   // its rank, if all longer tokens that have it in them are of higher ranks
        std::uint32_t begins = kNone;  // the lowest rank of the tokens that begin with it
        std::uint32_t ends = kNone;    // and of those that end with it
    };
    const Pair& pair(char first, char second) const { return pairs_[pair_place(first, second)]; }

    // The rank of the `size` bytes at `p`, at least one, behind which kPadding bytes are readable; kNone if there is none.
    std::uint32_t find(const char* p, std::size_t size) const {
        if (size <= kKeyBytes) {
            const WordKey key = word_key(p, size);
            const std::uint64_t hash = hash_key(key);
            return may_have(hash) ? find_slot(key, hash) : kNone;
        }
        return size > longest_ ? kNone : find_long({p, size});
    }

    // A lookup that is begun and not finished.
    struct Sought {
        const char* p = nullptr;
        std::size_t size = 0;
        WordKey key;  // and its hash, of words that have one
        std::uint64_t hash = 0;
        bool may_be = false;
    };

    // `find` in two steps, so that memory answers several lookups together.
    Sought begin(const char* p, std::size_t size) const {
        Sought sought{p, size, {}, 0, size <= longest_};
        if (size <= kKeyBytes) {
            sought.key = word_key(p, size);
            sought.hash = hash_key(sought.key);
            sought.may_be = may_have(sought.hash);
            __builtin_prefetch(&slots_[sought.hash & (slots_.size() - 1)]);
        }
        return sought;
    }
    std::uint32_t finish(const Sought& sought) const {
        if (!sought.may_be) {
            return kNone;
        }
        return sought.size <= kKeyBytes ? find_slot(sought.key, sought.hash) : find_long({sought.p, sought.size});
    }

    // Tells the processor that the word with this hash of its key will be looked for.
    void expect(std::uint64_t hash) const {
        if (may_have(hash)) {
            __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]);
        }
    }

    // Whether some token reaches from inside or the beginning of a character, which ends before `p`, into the one that
    // begins there, both of three or more bytes in UTF-8. If not, the pre-token that they stand in is encoded to what its
    // two halves are encoded to. May say yes where the answer is no.
    bool may_join(std::uint32_t left, const char* p, std::uint32_t right) const {
        return is_cut(p) || is_set(joins_, join(left, right));
    }

    // Whether some token has only a part of the character that ends before `p`, or of the one that begins there, and reaches
    // across. May say yes where the answer is no.
    bool is_cut(const char* p) const { return is_set(cut_joins_, pair_place(p[-1], p[0])); }

    // The rank of a character of three bytes to begin with where no token is_cut at its sides, instead of its bytes; kNone
    // if they must be joined in their order.
    std::uint32_t of_character(std::uint32_t c) const { return c < characters_.size() ? characters_[c] : kNone; }

  private:
    static constexpr int kFilterBits = 21;
    static constexpr int kJoinBits = 20;

    // Four in a line of the cache: all slots of Qwen's vocabulary are 4 MiB, which the third-level cache holds beside the
    // words that are known.
    struct Slot {
        std::uint64_t low;    // of the token's key; of longer tokens their hash
        std::uint32_t check;  // check_of
        std::uint32_t rank;
    };

    // Tokens of so many bytes are told apart by `low` and `check`; the bytes of longer ones are compared.
    static constexpr std::size_t kCheckedBytes = 11;
    static constexpr std::uint32_t kFirstCompared = (kCheckedBytes + 1) << 24;
    static constexpr std::uint32_t kLong = std::uint32_t{0xFF} << 24;

    // The size of a token that has a key, and 24 bits: those that `low` lacks, or of the hash if they are more.
    static std::uint32_t check_of(const WordKey& key, std::uint64_t hash) {
        const auto size = static_cast<std::uint32_t>(key.high >> 56);
        const std::uint64_t rest = size <= kCheckedBytes ? key.high : hash >> 16;
        return size << 24 | static_cast<std::uint32_t>(rest & 0xFFFFFF);
    }

    bool may_have(std::uint64_t hash) const { return is_set(known_, filter_bit(hash)); }

    std::uint32_t find_slot(const WordKey& key, std::uint64_t hash) const {
        const std::size_t mask = slots_.size() - 1;
        const std::uint32_t check = check_of(key, hash);
        for (std::size_t place = hash & mask;; place = (place + 1) & mask) {
            const Slot& slot = slots_[place];
            if (slot.rank == kNone) {
                return kNone;
            }
            if (slot.low == key.low && slot.check == check &&
                (check < kFirstCompared || word_key(text_.data() + starts_[slot.rank], key.high >> 56) == key)) {
                return slot.rank;
            }
        }
    }

    static bool is_set(const LargeArray<std::uint64_t>& bits, std::size_t bit) {
        return (bits[bit / 64] >> (bit % 64) & 1) != 0;
    }
    static std::size_t filter_bit(std::uint64_t hash) { return hash >> (64 - kFilterBits); }
    static std::size_t pair_place(char left, char right) {
        return static_cast<std::size_t>(static_cast<unsigned char>(left)) << 8 | static_cast<unsigned char>(right);
    }
    static std::size_t join(std::uint32_t left, std::uint32_t right) {
        return mix64(static_cast<std::uint64_t>(left) << 32 | right) >> (64 - kJoinBits);
    }

    std::string_view token(std::uint32_t rank) const {
        return std::string_view(text_).substr(starts_[rank], starts_[rank + 1] - starts_[rank]);
    }
    std::uint32_t find_long(std::string_view word) const;
    void note_pairs(std::string_view token, std::uint32_t rank);
    void note_joins(std::string_view token);
    void find_characters();

    std::array<std::uint32_t, 256> bytes_{};
    LargeArray<Pair> pairs_;           // [256 * 256]
    LargeArray<std::uint64_t> known_;  // bits by hash of a token: most strings that are none are found out here
    LargeArray<Slot> slots_;           // open addressing, a power of two, at most two thirds full
    std::vector<std::size_t> starts_;  // by rank, where the token begins in text_; one more for the end
    std::string text_;
    std::size_t longest_ = 0;
    LargeArray<std::uint64_t> joins_;       // bits by hash of two characters that stand side by side in a token
    LargeArray<std::uint64_t> cut_joins_;   // bits by the two bytes where a token has only a part of one of them
    LargeArray<std::uint32_t> characters_;  // by code point, up to the last of three bytes
};

}  // namespace qwen_data
