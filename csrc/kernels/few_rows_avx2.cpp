// Vectors of eight floats, for x86-64 processors with AVX2.
#include "few_rows_targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "few_rows_inner.h"

namespace qwen_kernels {
namespace {

struct Eight {
    using Value = __m256;
    static constexpr std::size_t kCount = 8;
    static Value zero() { return _mm256_setzero_ps(); }
    static Value load(const float* from) { return _mm256_loadu_ps(from); }
    static Value load(const std::uint16_t* from) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static Value multiply_add(Value a, Value b, Value c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(Value value) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        four = _mm_add_ss(four, _mm_movehdup_ps(four));
        return _mm_cvtss_f32(four);
    }
};

}  // namespace

void few_rows_avx2(const Task& task, std::size_t first, std::size_t last) {
    if (task.stored == Stored::fp32) {
        stripes<Eight>(task.rows, static_cast<const float*>(task.matrix), task.out, task.count, task.height, task.width,
                       first, last);
    } else {
        stripes<Eight>(task.rows, static_cast<const std::uint16_t*>(task.matrix), task.out, task.count, task.height,
                       task.width, first, last);
    }
}

}  // namespace qwen_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
