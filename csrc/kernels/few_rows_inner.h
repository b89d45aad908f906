// The inner loops, for any width of vectors: included by one file for each set of instructions, after it has chosen them.
//
// `Lanes` is a vector of floats: `Value`, kCount, zero(), load(const float*), load(const std::uint16_t*) of bf16,
// multiply_add(a, b, c) = a * b + c, and sum().
#pragma once

#include "few_rows.h"

namespace qwen_kernels {

// The value of a bf16, whose bits are the upper half of a float's.
inline float widened(std::uint16_t bits) {
    const std::uint32_t whole = static_cast<std::uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &whole, sizeof value);
    return value;
}
inline float widened(float value) { return value; }

// Scalar products of kRows rows with kHeight rows of the matrix. Several of both are taken at once: a loaded vector is
// used several times, and sums that do not wait for each other fill the processor.
template <typename Lanes, typename Number, int kRows, int kHeight>
inline void block(const float* rows, const Number* matrix, float* out, std::size_t out_stride, std::size_t width) {
    typename Lanes::Value sums[kRows][kHeight];
    for (int r = 0; r < kRows; ++r) {
        for (int h = 0; h < kHeight; ++h) {
            sums[r][h] = Lanes::zero();
        }
    }
    // The next rows of the matrix are asked for beforehand: those of a narrow one are too short for the processor to find
    // out that it should.
    constexpr bool kAsksAhead = sizeof(Number) < sizeof(float);
    std::size_t i = 0;
    for (; i + Lanes::kCount <= width; i += Lanes::kCount) {
        typename Lanes::Value loaded[kHeight];
        for (int h = 0; h < kHeight; ++h) {
            loaded[h] = Lanes::load(matrix + h * width + i);
            if (kAsksAhead) {
                __builtin_prefetch(matrix + (kHeight + h) * width + i);
            }
        }
        for (int r = 0; r < kRows; ++r) {
            const auto row = Lanes::load(rows + r * width + i);
            for (int h = 0; h < kHeight; ++h) {
                sums[r][h] = Lanes::multiply_add(row, loaded[h], sums[r][h]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int h = 0; h < kHeight; ++h) {
            float sum = Lanes::sum(sums[r][h]);
            for (std::size_t rest = i; rest < width; ++rest) {
                sum += rows[r * width + rest] * widened(matrix[h * width + rest]);
            }
            out[r * out_stride + h] = sum;
        }
    }
}

// Rows [first, last) of the matrix with one row. They are taken one after the other, as they lie in memory: all of the time
// is reading, and several at once are read at two thirds of the speed.
template <typename Lanes, typename Number>
void stripe_of_one(const float* row, const Number* matrix, float* out, std::size_t width, std::size_t first,
                   std::size_t last) {
    constexpr std::size_t kSums = 4;
    constexpr std::size_t kAtOnce = kSums * Lanes::kCount;
    for (std::size_t h = first; h < last; ++h) {
        const Number* const numbers = matrix + h * width;
        typename Lanes::Value sums[kSums];
        for (std::size_t k = 0; k < kSums; ++k) {
            sums[k] = Lanes::zero();
        }
        std::size_t i = 0;
        for (; i + kAtOnce <= width; i += kAtOnce) {
            for (std::size_t k = 0; k < kSums; ++k) {
                const std::size_t at = i + k * Lanes::kCount;
                sums[k] = Lanes::multiply_add(Lanes::load(row + at), Lanes::load(numbers + at), sums[k]);
            }
        }
        float sum = (Lanes::sum(sums[0]) + Lanes::sum(sums[1])) + (Lanes::sum(sums[2]) + Lanes::sum(sums[3]));
        for (; i < width; ++i) {
            sum += row[i] * widened(numbers[i]);
        }
        out[h] = sum;
    }
}

// Rows [first, last) of the matrix with kRows rows.
template <typename Lanes, typename Number, int kRows>
void stripe(const float* rows, const Number* matrix, float* out, std::size_t height, std::size_t width,
            std::size_t first, std::size_t last) {
    // As many sums as there are registers for: the more of the matrix is at hand, the less often are the rows loaded,
    // which are longer together than the first cache.
    constexpr int kHeight = kRows <= 2 ? 4 : 3;
    std::size_t h = first;
    for (; h + kHeight <= last; h += kHeight) {
        block<Lanes, Number, kRows, kHeight>(rows, matrix + h * width, out + h, height, width);
    }
    for (; h < last; ++h) {
        block<Lanes, Number, kRows, 1>(rows, matrix + h * width, out + h, height, width);
    }
}

template <typename Lanes, typename Number>
void stripes(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t height,
             std::size_t width, std::size_t first, std::size_t last) {
    using Stripe = void (*)(const float*, const Number*, float*, std::size_t, std::size_t, std::size_t, std::size_t);
    constexpr std::size_t kTogether = 4;
    constexpr Stripe kStripes[kTogether] = {stripe<Lanes, Number, 1>, stripe<Lanes, Number, 2>,
                                            stripe<Lanes, Number, 3>, stripe<Lanes, Number, 4>};
    if (count == 1) {
        return stripe_of_one<Lanes>(rows, matrix, out, width, first, last);
    }
    // A few rows of the matrix at a time, which the second four rows find in the cache.
    constexpr std::size_t kStep = 12;
    for (std::size_t h = first; h < last; h += kStep) {
        const std::size_t end = h + kStep < last ? h + kStep : last;
        for (std::size_t row = 0; row < count; row += kTogether) {
            const std::size_t together = count - row < kTogether ? count - row : kTogether;
            kStripes[together - 1](rows + row * width, matrix, out + row * height, height, width, h, end);
        }
    }
}

}  // namespace qwen_kernels
