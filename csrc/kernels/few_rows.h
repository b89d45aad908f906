// Products of a few rows with a large matrix: what generating one token for each of a few texts consists of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_kernels {

// Numbers that a matrix is stored as.
enum class Stored { fp32, bf16 };

// out[r, o] = sum over i of rows[r, i] * matrix[o, i], for `count` rows, in fp32; the matrix is read from memory
// once, by `threads` threads.
//
// All are dense and row-major: rows [count, width] and out [count, height] in fp32, matrix [height, width] as `stored`
// says. The sums are taken in the same order whatever the threads.
void few_rows(const float* rows, const void* matrix, Stored stored, float* out, std::size_t count, std::size_t height,
              std::size_t width, int threads);

// Whether this processor has the instructions that make it worth while.
bool is_fast();

}  // namespace qwen_kernels
