// Short words as numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "text_hash.h"

namespace qwen_data {

// Bytes that must be readable behind a text, whatever they are.
constexpr std::size_t kPadding = 16;

// The longest word that has a key.
constexpr std::size_t kKeyBytes = 15;

// The bytes of a word of 1 to kKeyBytes bytes, zeros behind them, and the number of bytes in the last byte: different for
// different words, and never all zero.
struct WordKey {
    std::uint64_t low = 0;
    std::uint64_t high = 0;

    bool operator==(const WordKey& other) const { return low == other.low && high == other.high; }
};

// The key of the `size` bytes at `p`, behind which kPadding bytes are readable; 1 <= size <= kKeyBytes.
inline WordKey word_key(const char* p, std::size_t size) {
    // Looked up, because words of random lengths would make any branch a gamble.
    static constexpr std::uint64_t kAll = ~std::uint64_t{0};
    static constexpr std::uint64_t kMasks[16] = {
        0,    0xFF, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF,
        kAll, kAll, kAll,   kAll,     kAll,       kAll,         kAll,           kAll,
    };
    WordKey key;
    std::memcpy(&key.low, p, 8);
    std::memcpy(&key.high, p + 8, 8);
    key.low &= kMasks[size];
    key.high = (key.high & kMasks[size > 8 ? size - 8 : 0]) | static_cast<std::uint64_t>(size) << 56;
    return key;
}

// A key that only longer words have: of their hash, and their number of bytes.
inline WordKey long_word_key(std::uint64_t hash, std::size_t size) { return {hash, std::uint64_t{0xFF} << 56 | size}; }

inline std::uint64_t hash_key(const WordKey& key) {
    return fold_multiply(key.low ^ 0x9E3779B97F4A7C15ULL, key.high ^ 0x6A09E667F3BCC909ULL);
}

}  // namespace qwen_data
