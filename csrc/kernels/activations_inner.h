// Passes over one row or one head, for any width of vectors.
//
// `Number` is what tensors are stored as and values are rounded to; where they are read from or written to may be fp32.
#pragma once

#include "lanes.h"

namespace qwen_kernels {
namespace {

// Calls `pass` with vectors of Lanes as far as they go, then with single floats.
template <typename Lanes, typename Pass>
inline void along(std::size_t width, Pass pass) {
    std::size_t i = 0;
    for (; i + Lanes::kCount <= width; i += Lanes::kCount) {
        pass(Lanes{}, i);
    }
    for (; i < width; ++i) {
        pass(One{}, i);
    }
}

template <typename Lanes, typename Number>
inline float sum_of_squares(const Number* in, std::size_t width) {
    constexpr std::size_t kSums = 4;
    typename Lanes::Value sums[kSums];
    for (auto& sum : sums) {
        sum = Lanes::all(0.0F);
    }
    std::size_t i = 0;
    for (; i + kSums * Lanes::kCount <= width; i += kSums * Lanes::kCount) {
        for (std::size_t k = 0; k < kSums; ++k) {
            const auto value = Lanes::load(in + i + k * Lanes::kCount);
            sums[k] = Lanes::multiply_add(value, value, sums[k]);
        }
    }
    float sum = Lanes::sum(Lanes::add(Lanes::add(sums[0], sums[1]), Lanes::add(sums[2], sums[3])));
    for (; i < width; ++i) {
        sum += widened(in[i]) * widened(in[i]);
    }
    return sum;
}

// out = in / sqrt(mean(in^2) + eps) * weight.
template <typename Lanes, typename In, typename Number, typename Out>
inline void norm_row(const In* in, const Number* weight, Out* out, std::size_t width, float eps) {
    const float mean = sum_of_squares<Lanes>(in, width) / static_cast<float>(width);
    const float scale = 1.0F / std::sqrt(mean + eps);
    along<Lanes>(width, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        const auto normed = rounded<L>(L::multiply(L::load(in + i), L::all(scale)), weight);
        keep<L, Number>(out + i, L::multiply(normed, L::load(weight + i)));
    });
}

// out = silu(gates) * values.
template <typename Lanes, typename Number, typename In, typename Out>
inline void gate_row(const In* gates, const In* values, Out* out, std::size_t width) {
    const Number* const kind = nullptr;
    along<Lanes>(width, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        const auto gate = L::load(gates + i);
        const auto below = L::add(L::all(1.0F), exponential<L>(L::subtract(L::all(0.0F), gate)));
        const auto silu = rounded<L>(L::divide(gate, below), kind);
        keep<L, Number>(out + i, L::multiply(silu, L::load(values + i)));
    });
}

// Turns the pairs (i, i + size / 2) of a head, then multiplies by a factor; each is rounded.
template <typename Lanes, typename Number, typename In, typename Out>
inline void rotate_head(const In* in, const float* cosines, const float* sines, Out* out, std::size_t size,
                        const float* factor = nullptr) {
    const Number* const kind = nullptr;
    const std::size_t half = size / 2;
    along<Lanes>(half, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        const auto first = L::load(in + i), second = L::load(in + half + i);
        const auto crossed = L::multiply(second, L::load(sines + i));
        auto left = L::subtract(L::multiply(first, L::load(cosines + i)), crossed);
        auto right = L::multiply_add(second, L::load(cosines + half + i), L::multiply(first, L::load(sines + half + i)));
        if (factor != nullptr) {
            left = L::multiply(rounded<L>(left, kind), L::all(*factor));
            right = L::multiply(rounded<L>(right, kind), L::all(*factor));
        }
        keep<L, Number>(out + i, left);
        keep<L, Number>(out + half + i, right);
    });
}

}  // namespace
}  // namespace qwen_kernels
