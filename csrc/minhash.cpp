#include "minhash.h"

#include <algorithm>

#include "text_hash.h"

// Several machine codes of one function, the best one picked when the program starts. 64-bit products need AVX-512 DQ for
// one instruction each; AVX2 builds them of three.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define QWEN_DATA_VECTOR_CLONES __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define QWEN_DATA_VECTOR_CLONES
#endif

namespace qwen_data {

namespace {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;
constexpr std::size_t kLanes = 16;

// Lowers the minima of kLanes hash functions to those over the shingles; they stay in registers meanwhile.
QWEN_DATA_VECTOR_CLONES
void minimum_of_lanes(const std::uint64_t* shingles, std::size_t count, const std::uint64_t* multipliers,
                      const std::uint64_t* addends, std::uint64_t* minima) {
    std::uint64_t best[kLanes];
    std::uint64_t a[kLanes];
    std::uint64_t b[kLanes];
    for (std::size_t k = 0; k < kLanes; ++k) {
        best[k] = minima[k];
        a[k] = multipliers[k];
        b[k] = addends[k];
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t x = shingles[i];
        for (std::size_t k = 0; k < kLanes; ++k) {
            const std::uint64_t value = a[k] * x + b[k];
            best[k] = value < best[k] ? value : best[k];
        }
    }
    for (std::size_t k = 0; k < kLanes; ++k) {
        minima[k] = best[k];
    }
}

}  // namespace

HashFunctions::HashFunctions(std::size_t count, std::uint64_t seed) {
    for (std::uint64_t k = 0; k < count; ++k) {
        multipliers.push_back(mix64(seed + (2 * k + 1) * kGolden) | 1);
        addends.push_back(mix64(seed + (2 * k + 2) * kGolden));
    }
}

void lower_signature(View<const std::uint64_t> shingles, const HashFunctions& functions, std::uint64_t* signature) {
    const std::size_t count = functions.multipliers.size();
    for (std::size_t start = 0; start < count; start += kLanes) {
        const std::size_t lanes = std::min(kLanes, count - start);
        std::uint64_t a[kLanes] = {};
        std::uint64_t b[kLanes] = {};
        std::uint64_t minima[kLanes] = {};
        std::copy_n(signature + start, lanes, minima);
        std::copy_n(functions.multipliers.data() + start, lanes, a);
        std::copy_n(functions.addends.data() + start, lanes, b);
        minimum_of_lanes(shingles.data, shingles.size, a, b, minima);
        std::copy_n(minima, lanes, signature + start);
    }
}

void compute_band_keys(const std::uint64_t* signature, std::size_t bands, std::size_t rows, std::uint64_t* keys) {
    for (std::size_t band = 0; band < bands; ++band) {
        std::uint64_t key = mix64(band + 1);
        for (std::size_t row = 0; row < rows; ++row) {
            key = mix64(key ^ signature[band * rows + row]) * kGolden;
        }
        keys[band] = key;
    }
}

}  // namespace qwen_data
