// Attention of one token's queries to the keys and values of its text, for any width of vectors.
#pragma once

#include "few_rows_inner.h"
#include "lanes.h"

namespace qwen_kernels {
namespace {

// Keys that are taken at once: with their values they stay in the second cache while several queries read them.
constexpr std::size_t kKeysAtOnce = 256;

// Floats of working memory for so many queries.
constexpr std::size_t attention_scratch(std::size_t queries) { return queries * (kKeysAtOnce + 2); }

// out[q, channel] += sum over keys of shares[q, key] * values[key, channel], for kVectors vectors of channels.
template <typename Lanes, typename Number, int kQueries, int kVectors>
inline void add_values_of(const float* shares, const Number* values, float* out, std::size_t keys, std::size_t size) {
    typename Lanes::Value sums[kQueries][kVectors];
    for (int q = 0; q < kQueries; ++q) {
        for (int v = 0; v < kVectors; ++v) {
            sums[q][v] = Lanes::load(out + q * size + v * Lanes::kCount);
        }
    }
    for (std::size_t key = 0; key < keys; ++key) {
        typename Lanes::Value share[kQueries];
        for (int q = 0; q < kQueries; ++q) {
            share[q] = Lanes::all(shares[q * kKeysAtOnce + key]);
        }
        for (int v = 0; v < kVectors; ++v) {
            const auto value = Lanes::load(values + key * size + v * Lanes::kCount);
            for (int q = 0; q < kQueries; ++q) {
                sums[q][v] = Lanes::multiply_add(share[q], value, sums[q][v]);
            }
        }
    }
    for (int q = 0; q < kQueries; ++q) {
        for (int v = 0; v < kVectors; ++v) {
            Lanes::store(out + q * size + v * Lanes::kCount, sums[q][v]);
        }
    }
}

// The same for all channels of kQueries queries.
template <typename Lanes, typename Number, int kQueries>
void add_values(const float* shares, const Number* values, float* out, std::size_t keys, std::size_t size) {
    constexpr int kVectors = kQueries == 1 ? 8 : 4;
    constexpr std::size_t kTogether = kVectors * Lanes::kCount;
    std::size_t at = 0;
    for (; at + kTogether <= size; at += kTogether) {
        add_values_of<Lanes, Number, kQueries, kVectors>(shares, values + at, out + at, keys, size);
    }
    for (; at + Lanes::kCount <= size; at += Lanes::kCount) {
        add_values_of<Lanes, Number, kQueries, 1>(shares, values + at, out + at, keys, size);
    }
    for (; at < size; ++at) {
        add_values_of<One, Number, kQueries, 1>(shares, values + at, out + at, keys, size);
    }
}

// Scores of one query to shares of its largest one; returns their sum.
template <typename Lanes>
inline float shares_of(float* scores, std::size_t keys, float scale, float& largest, float& correction) {
    auto most = Lanes::all(largest);
    float before = largest;
    std::size_t i = 0;
    for (; i + Lanes::kCount <= keys; i += Lanes::kCount) {
        const auto score = Lanes::multiply(Lanes::load(scores + i), Lanes::all(scale));
        Lanes::store(scores + i, score);
        most = Lanes::at_least(most, score);
    }
    largest = Lanes::largest(most);
    for (; i < keys; ++i) {
        scores[i] *= scale;
        largest = scores[i] > largest ? scores[i] : largest;
    }
    // Nothing was there before the first keys: its e^-87 multiplies zeros.
    correction = exponential<One>(before - largest);
    auto sums = Lanes::all(0.0F);
    for (i = 0; i + Lanes::kCount <= keys; i += Lanes::kCount) {
        const auto share = exponential<Lanes>(Lanes::subtract(Lanes::load(scores + i), Lanes::all(largest)));
        Lanes::store(scores + i, share);
        sums = Lanes::add(sums, share);
    }
    float sum = Lanes::sum(sums);
    for (; i < keys; ++i) {
        scores[i] = exponential<One>(scores[i] - largest);
        sum += scores[i];
    }
    return sum;
}

// out[q] = sum over keys of softmax(scale * queries[q] . keys) * values, in fp32; of the keys [first, last).
//
// queries and out are dense [queries, size], keys and values [last, size]; `scratch` has attention_scratch(queries) floats.
template <typename Lanes, typename Number>
void attend(const float* queries, const Number* keys, const Number* values, float* out, std::size_t count,
            std::size_t size, std::size_t first, std::size_t last, float scale, float* scratch) {
    using Add = void (*)(const float*, const Number*, float*, std::size_t, std::size_t);
    constexpr Add kAdd[] = {add_values<Lanes, Number, 1>, add_values<Lanes, Number, 2>, add_values<Lanes, Number, 3>};
    constexpr std::size_t kTogether = 3;
    float* const largest = scratch + count * kKeysAtOnce;
    float* const sums = largest + count;
    for (std::size_t q = 0; q < count; ++q) {
        largest[q] = -INFINITY;
        sums[q] = 0.0F;
    }
    std::memset(out, 0, count * size * sizeof(float));
    for (std::size_t start = first; start < last; start += kKeysAtOnce) {
        const std::size_t taken = start + kKeysAtOnce < last ? kKeysAtOnce : last - start;
        products<Lanes>(queries, keys + start * size, scratch, count, kKeysAtOnce, size, 0, taken);
        for (std::size_t q = 0; q < count; ++q) {
            float correction;
            const float sum = shares_of<Lanes>(scratch + q * kKeysAtOnce, taken, scale, largest[q], correction);
            sums[q] = sums[q] * correction + sum;
            for (std::size_t i = 0; i < size; ++i) {
                out[q * size + i] *= correction;
            }
        }
        for (std::size_t q = 0; q < count; q += kTogether) {
            const std::size_t together = count - q < kTogether ? count - q : kTogether;
            kAdd[together - 1](scratch + q * kKeysAtOnce, values + start * size, out + q * size, taken, size);
        }
    }
    for (std::size_t q = 0; q < count; ++q) {
        const float share = 1.0F / sums[q];
        for (std::size_t i = 0; i < size; ++i) {
            out[q * size + i] *= share;
        }
    }
}

}  // namespace
}  // namespace qwen_kernels
