// Products of a few rows with a large matrix: what generating one token for each of a few texts consists of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_kernels {

// out[r, o] = sum over i of rows[r, i] * matrix[o, i], for `count` rows, in fp32; the matrix is read from memory
// once, by `threads` threads.
//
// All are dense and row-major: rows [count, width] and out [count, height] in fp32, matrix [height, width] in fp32 or, as
// std::uint16_t, in bf16. The sums are taken in the same order whatever the threads.
template <typename Number>
void few_rows(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t height,
              std::size_t width, int threads);

// Whether this processor has the instructions that make it worth while.
bool is_fast();

}  // namespace qwen_kernels
