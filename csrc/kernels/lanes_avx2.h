// Vectors of eight floats; only where AVX2 and FMA are the chosen instructions.
#pragma once

#include "lanes.h"

namespace qwen_kernels {
namespace {

struct Eight {
    using Value = __m256;
    static constexpr std::size_t kCount = 8;
    static Value all(float value) { return _mm256_set1_ps(value); }
    static Value load(const float* from) { return _mm256_loadu_ps(from); }
    static Value load(const std::uint16_t* from) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static void store(float* to, Value value) { _mm256_storeu_ps(to, value); }
    static void store(std::uint16_t* to, Value value) {
        const __m256i bits = _mm256_srli_epi32(rounded_bits(value), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
    }
    static Value add(Value a, Value b) { return _mm256_add_ps(a, b); }
    static Value subtract(Value a, Value b) { return _mm256_sub_ps(a, b); }
    static Value multiply(Value a, Value b) { return _mm256_mul_ps(a, b); }
    static Value divide(Value a, Value b) { return _mm256_div_ps(a, b); }
    static Value multiply_add(Value a, Value b, Value c) { return _mm256_fmadd_ps(a, b, c); }
    static Value at_least(Value bound, Value value) { return _mm256_max_ps(bound, value); }
    static Value at_most(Value bound, Value value) { return _mm256_min_ps(bound, value); }
    static Value as_bf16(Value value) {
        return _mm256_castsi256_ps(_mm256_and_si256(rounded_bits(value), _mm256_set1_epi32(~0xFFFF)));
    }
    static Value whole(Value value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Value scaled(Value value, Value whole) {
        const __m256i power = _mm256_cvtps_epi32(whole), half = _mm256_srai_epi32(power, 1);
        return _mm256_mul_ps(_mm256_mul_ps(value, two_to(half)), two_to(_mm256_sub_epi32(power, half)));
    }
    static float sum(Value value) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        four = _mm_add_ss(four, _mm_movehdup_ps(four));
        return _mm_cvtss_f32(four);
    }
    static float largest(Value value) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        four = _mm_max_ss(four, _mm_movehdup_ps(four));
        return _mm_cvtss_f32(four);
    }

private:
    // The upper halves are the nearest bf16.
    static __m256i rounded_bits(Value value) {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
        return _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC00000), _mm256_castps_si256(is_nan));
    }
    static Value two_to(__m256i power) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23));
    }
};

}  // namespace
}  // namespace qwen_kernels
