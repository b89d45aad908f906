#include "text_hash.h"

namespace qwen_data {

namespace {

constexpr std::uint64_t kC1 = 0x87C37B91114253D5ULL;
constexpr std::uint64_t kC2 = 0x4CF5AD432745937FULL;

std::uint64_t rotate_left(std::uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

std::uint64_t finish(std::uint64_t k) {
    k = (k ^ (k >> 33)) * 0xFF51AFD7ED558CCDULL;
    k = (k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53ULL;
    return k ^ (k >> 33);
}

}  // namespace

Hash128 murmur3_128(const char* data, std::size_t size) {
    std::uint64_t h1 = 0;
    std::uint64_t h2 = 0;
    const std::size_t blocks = size / 16;
    for (std::size_t block = 0; block < blocks; ++block) {
        std::uint64_t k[2];
        std::memcpy(k, data + 16 * block, 16);
        h1 ^= rotate_left(k[0] * kC1, 31) * kC2;
        h1 = (rotate_left(h1, 27) + h2) * 5 + 0x52DCE729;
        h2 ^= rotate_left(k[1] * kC2, 33) * kC1;
        h2 = (rotate_left(h2, 31) + h1) * 5 + 0x38495AB5;
    }
    // A tail of zeros changes neither half, so the padded block may always be mixed in.
    std::uint64_t k[2] = {0, 0};
    std::memcpy(k, data + 16 * blocks, size % 16);
    h2 ^= rotate_left(k[1] * kC2, 33) * kC1;
    h1 ^= rotate_left(k[0] * kC1, 31) * kC2;
    h1 ^= size;
    h2 ^= size;
    h1 += h2;
    h2 += h1;
    h1 = finish(h1);
    h2 = finish(h2);
    h1 += h2;
    h2 += h1;
    return {h1, h2};
}

}  // namespace qwen_data
