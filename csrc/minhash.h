// MinHash signatures and the keys of their bands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "views.h"

namespace qwen_data {

// The value of every empty minimum: the signature of a text without words.
constexpr std::uint64_t kNoShingle = ~std::uint64_t{0};

// Multipliers a (odd) and addends b of the hash functions h_k(x) = a_k x + b_k modulo 2^64.
struct HashFunctions {
    // a_k = mix64(seed + (2 k + 1) g) | 1 and b_k = mix64(seed + (2 k + 2) g), g = 0x9E3779B97F4A7C15.
    HashFunctions(std::size_t count, std::uint64_t seed);

    std::vector<std::uint64_t> multipliers;
    std::vector<std::uint64_t> addends;
};

// signature[k] = minimum of signature[k] and of h_k over the shingles (Broder 1997). Start with kNoShingle everywhere.
void lower_signature(View<const std::uint64_t> shingles, const HashFunctions& functions, std::uint64_t* signature);

// Key of each band of `rows` values: k = mix64(band + 1), then k = mix64(k ^ value) * g for each value.
void compute_band_keys(const std::uint64_t* signature, std::size_t bands, std::size_t rows, std::uint64_t* keys);

}  // namespace qwen_data
