// One layer of the model for one new token of each of a few texts: products, attention and all that stands between them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace qwen_kernels {

// A layer's weights and what it works on: dense tensors of Number (float, or std::uint16_t for bf16).
//
// In the product for queries, keys and values the heads of a group lie together: `queries` heads of queries, one of
// keys, one of values. The cache has a row of [groups, room, size] for each text.
template <typename Number>
struct LayerStep {
    std::size_t rows, hidden, ffn;
    std::size_t groups, queries, size;  // groups of heads, heads of queries in a group, channels of a head (even)
    float eps, attention_scale;
    std::size_t window;  // tokens that a token sees, itself included; 0 for all

    const Number *input_norm, *qkv, *qkv_bias, *query_norm, *key_norm, *projection;  // bias, norms of heads: or null
    const Number *mlp_norm, *gates_and_values, *output;

    const float *cosines, *sines;  // [size] of a row; the next row's are angle_step further
    std::size_t angle_step;
    const float* query_factors;  // of each row, or null for 1

    Number *keys, *values;  // of the first row and group
    std::size_t row_step, group_step;
    const std::size_t* offsets;  // of each row: tokens before the new one

    const Number* in;  // [rows, hidden]
    Number* out;       // [rows, hidden], not `in`

    std::size_t qkv_width() const { return groups * (queries + 2) * size; }
    std::size_t attended_width() const { return groups * queries * size; }
};

// Products and the attention of a layer follow one another; the threads take parts of each as they come.
enum Phase { kQkv, kAttention, kProjection, kGates, kOutput, kPhases };

// Working memory, and where the threads of a layer meet.
struct LayerScratch {
    float *qkv, *attended, *residual, *activations;  // of all threads
    float* own;                                      // of the first thread; the next one's is own_floats further
    std::size_t own_floats;
    std::atomic<std::size_t> next[kPhases];
    std::atomic<int> arrived{0}, round{0};
};

// The next part of a phase that nobody has taken.
std::size_t taken_part(LayerScratch& scratch, Phase phase);

// Returns when all threads have come.
void meet(LayerScratch& scratch, int threads);

// Rows of a matrix that a thread takes at once, of so many numbers of so many bytes.
std::size_t part_height(std::size_t width, std::size_t number_bytes);

// Writes the new keys and values into the cache, and `out`. The same bits whatever the number of threads.
template <typename Number>
void layer_step(const LayerStep<Number>& step, int threads);

}  // namespace qwen_kernels
