// What there is for each set of instructions, and the choice among them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layer_step.h"

namespace qwen_kernels {

// Inner loops on tensors of one kind of numbers, each for a part that one thread takes.
template <typename Number>
struct Passes {
    // out[r, h] = rows[r] . matrix[h] for h in [first, last); a row of out has `stride` numbers.
    void (*products)(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t stride,
                     std::size_t width, std::size_t first, std::size_t last);
    void (*norm)(const Number* in, const Number* weight, Number* out, std::size_t width, float eps);
    void (*gate)(const Number* in, Number* out, std::size_t width);
    void (*rotate)(const Number* in, const float* cosines, const float* sines, Number* out, std::size_t size);
    // A group of a row: its queries and output [queries, size], keys and values [last, size].
    void (*attend)(const Number* queries, const Number* keys, const Number* values, Number* out, std::size_t count,
                   std::size_t size, std::size_t first, std::size_t last, float scale, float* scratch);
    std::size_t (*attend_scratch)(std::size_t count, std::size_t size);
    // All that one thread does of a layer.
    void (*layer)(const LayerStep<Number>& step, LayerScratch& scratch, int thread, int threads);
};

struct Target {
    Passes<float> fp32;
    Passes<std::uint16_t> bf16;

    const Passes<float>& of(const float*) const { return fp32; }
    const Passes<std::uint16_t>& of(const std::uint16_t*) const { return bf16; }
};

const Target& plain_target();
// Only on processors that have the instructions.
const Target& avx2_target();

// The best that this processor has.
const Target& best_target();

}  // namespace qwen_kernels
