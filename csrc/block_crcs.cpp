// Polynomials here are over GF(2) modulo P = x^32 + x^26 + ... + 1, "reflected" as CRC-32 wants them: of a word of n bits,
// bit i is the coefficient of x^(n - 1 - i), so that the first bit of the stream, the lowest one of the first byte, has the
// highest power.
#include "block_crcs.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwen_data {

namespace {

constexpr std::uint32_t kPolynomial = 0xEDB88320;  // P without x^32

constexpr std::uint32_t times_x(std::uint32_t value) { return (value >> 1) ^ (value & 1 ? kPolynomial : 0); }

// tables[n][byte]: what a byte does to the remainder after n more bytes.
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) {
            value = times_x(value);
        }
        tables[0][byte] = value;
    }
    for (std::size_t n = 1; n < tables.size(); ++n) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][before & 0xff];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

// `remainder` is that of the stream so far, without zlib's complements.
std::uint32_t by_tables(std::uint32_t remainder, const std::uint8_t* data, std::size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        // Byte by byte, so that the order of bytes in a word does not matter.
        std::uint32_t next = 0;
        for (std::size_t i = 0; i < 4; ++i) {
            next ^= kTables[7 - i][data[i] ^ (remainder >> (8 * i) & 0xff)];
            next ^= kTables[3 - i][data[i + 4]];
        }
        remainder = next;
    }
    for (; size > 0; ++data, --size) {
        remainder = (remainder >> 8) ^ kTables[0][(remainder ^ *data) & 0xff];
    }
    return remainder;
}

#if defined(__x86_64__)
// x^exponent modulo P.
constexpr std::uint32_t power_of_x(int exponent) {
    std::uint32_t value = 0x80000000;
    for (; exponent > 0; --exponent) {
        value = times_x(value);
    }
    return value;
}

// A register of 128 bits and the `kBits` that follow it in the stream are, modulo P, the second 128 of those bits plus a
// product for each half of the register: x^(kBits + 64) times the first 64 bits, x^kBits times the others. The product of
// two reflected words of 64 bits has 127 bits; in a register of 128 it reads as x times as much, hence the exponents.
template <int kBits>
__attribute__((target("pclmul,sse4.1"))) inline __m128i moved(__m128i value) {
    constexpr std::uint64_t kFirst = static_cast<std::uint64_t>(power_of_x(kBits + 64 - 1)) << 32;
    constexpr std::uint64_t kSecond = static_cast<std::uint64_t>(power_of_x(kBits - 1)) << 32;
    const __m128i factors = _mm_set_epi64x(static_cast<long long>(kSecond), static_cast<long long>(kFirst));
    return _mm_xor_si128(_mm_clmulepi64_si128(value, factors, 0x00), _mm_clmulepi64_si128(value, factors, 0x11));
}

// As `by_tables`, for 64 bytes and more. Four registers, because a multiplication takes several cycles and one can begin
// in each.
__attribute__((target("pclmul,sse4.1"))) std::uint32_t by_multiplication(std::uint32_t remainder,
                                                                         const std::uint8_t* data, std::size_t size) {
    const auto next = [&data, &size]() __attribute__((target("pclmul,sse4.1"))) {
        const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
        data += 16;
        size -= 16;
        return value;
    };
    __m128i a = _mm_xor_si128(next(), _mm_cvtsi32_si128(static_cast<int>(remainder)));
    __m128i b = next();
    __m128i c = next();
    __m128i d = next();
    while (size >= 64) {
        a = _mm_xor_si128(moved<512>(a), next());
        b = _mm_xor_si128(moved<512>(b), next());
        c = _mm_xor_si128(moved<512>(c), next());
        d = _mm_xor_si128(moved<512>(d), next());
    }
    b = _mm_xor_si128(moved<128>(a), b);
    c = _mm_xor_si128(moved<128>(b), c);
    d = _mm_xor_si128(moved<128>(c), d);
    while (size >= 16) {
        d = _mm_xor_si128(moved<128>(d), next());
    }
    // The register stands for all bytes so far: their remainder is that of its 16 bytes.
    std::array<std::uint8_t, 16> rest;
    std::memcpy(rest.data(), &d, rest.size());
    return by_tables(by_tables(0, rest.data(), rest.size()), data, size);
}

bool has_multiplication() {
    static const bool has = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    }();
    return has;
}
#endif

}  // namespace

std::uint32_t crc32(std::uint32_t crc, View<const std::uint8_t> bytes, bool portable) {
#if defined(__x86_64__)
    if (!portable && bytes.size >= 64 && has_multiplication()) {
        return ~by_multiplication(~crc, bytes.data, bytes.size);
    }
#else
    static_cast<void>(portable);
#endif
    return ~by_tables(~crc, bytes.data, bytes.size);
}

std::vector<std::uint32_t> block_crcs(View<const std::uint8_t> piece, std::size_t block_bytes, OpenBlock& open,
                                      bool portable) {
    std::vector<std::uint32_t> ended;
    ended.reserve((open.size + piece.size) / block_bytes);
    while (piece.size > 0) {
        const std::size_t taken = std::min(block_bytes - open.size, piece.size);
        open.crc = crc32(open.crc, {piece.data, taken}, portable);
        open.size += taken;
        piece = {piece.data + taken, piece.size - taken};
        if (open.size == block_bytes) {
            ended.push_back(open.crc);
            open = {0, 0};
        }
    }
    return ended;
}

}  // namespace qwen_data
