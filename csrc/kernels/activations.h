// Passes over activations between the products of a layer, each in one reading and one writing, for inference.
//
// Tensors are fp32 or bf16 (`Number` is float or std::uint16_t); arithmetic is in fp32, rounded where torch's own
// operations would round, so that both ways give the same to the last bit or two.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_kernels {

// out[r] = in[r] / sqrt(mean(in[r]^2) + eps) * weight, for `count` dense rows of `width`.
template <typename Number>
void rms_norm(const Number* in, const Number* weight, Number* out, std::size_t count, std::size_t width, float eps,
              int threads);

// out[r, i] = silu(in[r, i]) * in[r, width + i]: rows of 2 * width to rows of width.
template <typename Number>
void gate(const Number* in, Number* out, std::size_t count, std::size_t width, int threads);

// Heads of tokens, and the angles they are turned by.
struct Heads {
    std::size_t sequence;      // tokens of a row
    std::size_t batch;         // rows
    std::size_t heads;         // of a token
    std::size_t size;          // channels of a head, even
    std::size_t sequence_step; // numbers from a token of `in` to the next of its row
    std::size_t batch_step;    // from a row to the next
    std::size_t head_step;     // from a head to the next; channels are dense
    std::size_t angle_step;    // from the cosines of a token to those of the next
    std::size_t angle_batch_step;  // from a row's to the next; 0 where all rows have the same
};

// Turns the pairs (i, i + size / 2) of each head; `out` is dense [sequence, batch, heads, size].
template <typename Number>
void rotate(const Number* in, const float* cosines, const float* sines, Number* out, const Heads& heads, int threads);

}  // namespace qwen_kernels
