#include "activations.h"

#include <cmath>
#include <cstring>

// Loops are compiled for AVX2 too, and the processor's are taken when the library is loaded.
#if defined(__x86_64__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=haswell", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace qwen_kernels {
namespace {

// Numbers of a pass that are worth a thread.
constexpr std::size_t kNumbersOfAThread = std::size_t{1} << 15;

inline float widened(float value) { return value; }
inline float widened(std::uint16_t bits) {
    const std::uint32_t whole = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
}

// To the nearest, ties to even; NaN stays NaN.
inline std::uint16_t bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7FFFFFFFU) > 0x7F800000U ? 0x7FC0U : rounded);
}

inline void put(float value, float& out) { out = value; }
inline void put(float value, std::uint16_t& out) { out = bf16(value); }
inline float rounded(float value, const float*) { return value; }
inline float rounded(float value, const std::uint16_t*) { return widened(bf16(value)); }

// e^x to 2 units in the last place, without a branch; 0 below -87, infinity above 88.
inline float exponential(float x) {
    const float clamped = x < -87.3F ? -87.3F : (x > 88.7F ? 88.7F : x);
    const float scaled = clamped * 1.44269504F;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const float shifted = scaled + 12582912.0F;
    const float whole = shifted - 12582912.0F;
    const float rest = (clamped - whole * 0.693359375F) + whole * 2.12194440e-4F;
    float series = 1.0F / 5040.0F;
    series = series * rest + 1.0F / 720.0F;
    series = series * rest + 1.0F / 120.0F;
    series = series * rest + 1.0F / 24.0F;
    series = series * rest + 1.0F / 6.0F;
    series = series * rest + 0.5F;
    series = series * rest + 1.0F;
    series = series * rest + 1.0F;
    std::int32_t power;
    std::memcpy(&power, &shifted, sizeof power);
    // Half of the power twice: 2^128 is no float.
    const std::int32_t exponent = power - 0x4B400000, half = exponent >> 1;
    const std::int32_t first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
    float first, second;
    std::memcpy(&first, &first_bits, sizeof first);
    std::memcpy(&second, &second_bits, sizeof second);
    return series * first * second;
}

template <typename Number>
inline void norm_row(const Number* in, const Number* weight, Number* out, std::size_t width, float eps) {
    float squares = 0.0F;
#pragma omp simd reduction(+ : squares)
    for (std::size_t i = 0; i < width; ++i) {
        const float value = widened(in[i]);
        squares += value * value;
    }
    const float scale = 1.0F / std::sqrt(squares / static_cast<float>(width) + eps);
#pragma omp simd
    for (std::size_t i = 0; i < width; ++i) {
        put(rounded(widened(in[i]) * scale, weight) * widened(weight[i]), out[i]);
    }
}

template <typename Number>
inline void gate_row(const Number* in, Number* out, std::size_t width) {
#pragma omp simd
    for (std::size_t i = 0; i < width; ++i) {
        const float value = widened(in[i]);
        const float silu = rounded(value / (1.0F + exponential(-value)), in);
        put(silu * widened(in[width + i]), out[i]);
    }
}

template <typename Number>
inline void rotate_token(const Number* in, const float* cosines, const float* sines, Number* out, const Heads& heads) {
    const std::size_t half = heads.size / 2;
    for (std::size_t head = 0; head < heads.heads; ++head, in += heads.head_step, out += heads.size) {
#pragma omp simd
        for (std::size_t i = 0; i < half; ++i) {
            const float first = widened(in[i]), second = widened(in[half + i]);
            put(first * cosines[i] - second * sines[i], out[i]);
            put(second * cosines[half + i] + first * sines[half + i], out[half + i]);
        }
    }
}

// Clones cannot be templates: one for each kind of number.
#define FOR_NUMBERS(Number)                                                                                         \
    FOR_EACH_PROCESSOR void norm_one(const Number* in, const Number* weight, Number* out, std::size_t width,        \
                                     float eps) {                                                                   \
        norm_row(in, weight, out, width, eps);                                                                      \
    }                                                                                                               \
    FOR_EACH_PROCESSOR void gate_one(const Number* in, Number* out, std::size_t width) { gate_row(in, out, width); } \
    FOR_EACH_PROCESSOR void rotate_one(const Number* in, const float* cosines, const float* sines, Number* out,     \
                                       const Heads& heads) {                                                        \
        rotate_token(in, cosines, sines, out, heads);                                                               \
    }
FOR_NUMBERS(float)
FOR_NUMBERS(std::uint16_t)
#undef FOR_NUMBERS

// Threads for so many rows of a width.
int threads_for(std::size_t count, std::size_t width, int most) {
    const std::size_t worth = count * width / kNumbersOfAThread + 1;
    return worth < static_cast<std::size_t>(most) ? static_cast<int>(worth) : most;
}

}  // namespace

template <typename Number>
void rms_norm(const Number* in, const Number* weight, Number* out, std::size_t count, std::size_t width, float eps,
              int threads) {
    const int used = threads_for(count, width, threads);
    const auto rows = static_cast<std::ptrdiff_t>(count);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        norm_one(in + row * width, weight, out + row * width, width, eps);
    }
}

template <typename Number>
void gate(const Number* in, Number* out, std::size_t count, std::size_t width, int threads) {
    const int used = threads_for(count, width, threads);
    const auto rows = static_cast<std::ptrdiff_t>(count);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        gate_one(in + 2 * row * width, out + row * width, width);
    }
}

template <typename Number>
void rotate(const Number* in, const float* cosines, const float* sines, Number* out, const Heads& heads, int threads) {
    const std::size_t width = heads.heads * heads.size;
    const int used = threads_for(heads.sequence * heads.batch, width, threads);
    const auto tokens = static_cast<std::ptrdiff_t>(heads.sequence * heads.batch);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t token = 0; token < tokens; ++token) {
        const std::size_t place = static_cast<std::size_t>(token) / heads.batch;
        const std::size_t row = static_cast<std::size_t>(token) % heads.batch;
        const std::size_t angles = place * heads.angle_step + row * heads.angle_batch_step;
        rotate_one(in + place * heads.sequence_step + row * heads.batch_step, cosines + angles, sines + angles,
                   out + token * width, heads);
    }
}

template void rms_norm(const float*, const float*, float*, std::size_t, std::size_t, float, int);
template void rms_norm(const std::uint16_t*, const std::uint16_t*, std::uint16_t*, std::size_t, std::size_t, float,
                       int);
template void gate(const float*, float*, std::size_t, std::size_t, int);
template void gate(const std::uint16_t*, std::uint16_t*, std::size_t, std::size_t, int);
template void rotate(const float*, const float*, const float*, float*, const Heads&, int);
template void rotate(const std::uint16_t*, const float*, const float*, std::uint16_t*, const Heads&, int);

}  // namespace qwen_kernels
