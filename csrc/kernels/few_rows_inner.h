// Products of a few rows with a matrix, for any width of vectors.
#pragma once

#include "lanes.h"

namespace qwen_kernels {
namespace {

// Rows of the matrix that are read once for all rows: a multiple of how many are taken at once, 3 and 4.
constexpr std::size_t kHeightAtOnce = 12;

// Scalar products of kRows rows with kHeight rows of the matrix. Several of both are taken at once: a loaded vector is
// used several times, and sums that do not wait for each other fill the processor.
template <typename Lanes, typename Number, int kRows, int kHeight>
inline void block(const float* rows, const Number* matrix, float* out, std::size_t out_stride, std::size_t width) {
    typename Lanes::Value sums[kRows][kHeight];
    for (int r = 0; r < kRows; ++r) {
        for (int h = 0; h < kHeight; ++h) {
            sums[r][h] = Lanes::all(0.0F);
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
            sums[k] = Lanes::all(0.0F);
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

// out[r, h] = rows[r] . matrix[h] for h in [first, last), several rows of both at once; a row of out has `stride` numbers.
template <typename Lanes, typename Number>
void products(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t stride,
              std::size_t width, std::size_t first, std::size_t last) {
    using Stripe = void (*)(const float*, const Number*, float*, std::size_t, std::size_t, std::size_t, std::size_t);
    constexpr std::size_t kTogether = 4;
    constexpr Stripe kStripes[kTogether] = {stripe<Lanes, Number, 1>, stripe<Lanes, Number, 2>,
                                            stripe<Lanes, Number, 3>, stripe<Lanes, Number, 4>};
    // A few rows of the matrix at a time, which the second four rows find in the cache.
    for (std::size_t h = first; h < last; h += kHeightAtOnce) {
        const std::size_t end = h + kHeightAtOnce < last ? h + kHeightAtOnce : last;
        for (std::size_t row = 0; row < count; row += kTogether) {
            const std::size_t together = count - row < kTogether ? count - row : kTogether;
            kStripes[together - 1](rows + row * width, matrix, out + row * stride, stride, width, h, end);
        }
    }
}

// The same for a matrix that comes from memory.
template <typename Lanes, typename Number>
void streamed_products(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t stride,
                       std::size_t width, std::size_t first, std::size_t last) {
    if (count == 1) {
        stripe_of_one<Lanes>(rows, matrix, out, width, first, last);
    } else {
        products<Lanes>(rows, matrix, out, count, stride, width, first, last);
    }
}

}  // namespace
}  // namespace qwen_kernels
