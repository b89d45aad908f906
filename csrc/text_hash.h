// Hashes of byte strings and integers; defined by formulas, so that Python can repeat them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hashes read eight bytes at a time, little-endian"
#endif

namespace qwen_data {

// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that mixes every bit into every other.
inline std::uint64_t mix64(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// High half xor low half of the 128-bit product.
inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) {
    __extension__ typedef unsigned __int128 Wide;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
}

// The number that kBytes bytes are, the first one lowest.
template <std::size_t kBytes>
inline std::uint64_t load_bytes(const char* p) {
    std::uint64_t value = 0;
    std::memcpy(&value, p, kBytes);
    return value;
}

// 64-bit hash of `size` bytes: h starts as size * C1; each group of eight bytes w (little-endian, the last one padded with
// zeros) makes h = fold_multiply(h ^ w ^ C1, C2); the result is mix64(h). C1, C2 are odd fractional bits of the golden
// ratio and of sqrt(2).
inline std::uint64_t hash_bytes(const char* data, std::size_t size) {
    constexpr std::uint64_t c1 = 0x9E3779B97F4A7C15ULL;
    constexpr std::uint64_t c2 = 0x6A09E667F3BCC909ULL;
    const char* const end = data + size;
    std::uint64_t h = size * c1;
    for (; end - data >= 8; data += 8) {
        h = fold_multiply(h ^ load_bytes<8>(data) ^ c1, c2);
    }
    if (const std::size_t left = size % 8; left != 0) {
        // Loads of fixed sizes that overlap: a copy of any size is a call.
        const std::uint64_t word = size >= 8   ? load_bytes<8>(end - 8) >> (64 - 8 * left)
                                   : size >= 4 ? load_bytes<4>(data) | load_bytes<4>(end - 4) << (8 * left - 32)
                                               : load_bytes<1>(data) | load_bytes<1>(data + left / 2) << (left / 2 * 8) |
                                                     load_bytes<1>(end - 1) << (8 * left - 8);
        h = fold_multiply(h ^ word ^ c1, c2);
    }
    return mix64(h);
}

struct Hash128 {
    std::uint64_t first;
    std::uint64_t second;
};

// MurmurHash3, variant x64, 128 bits, seed 0 (Austin Appleby, public domain).
Hash128 murmur3_128(const char* data, std::size_t size);

}  // namespace qwen_data
