// Attention of one new token of each of a few texts to all of its text.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_kernels {

// Sizes, and where the keys and values of a text lie in their tensors.
struct Texts {
    std::size_t rows, groups, queries, size;  // texts, groups of heads, heads of queries in a group, channels of a head
    std::size_t row_step, group_step;         // numbers from a row's first key to the next row's, and for groups
    const std::size_t* lengths;               // tokens of each text, the new one included
    std::size_t window;                       // tokens that a token sees, itself included; 0 for all
    float scale;
};

// out[r, g, q] = sum over tokens of softmax(scale * queries[r, g, q] . keys[r, g, token]) * values[r, g, token].
//
// queries and out are dense [rows, groups, queries, size], keys and values [.., .., token, size]; sums are in fp32.
template <typename Number>
void attention(const Number* queries, const Number* keys, const Number* values, Number* out, const Texts& texts,
               int threads);

}  // namespace qwen_kernels
