// One entry for each set of instructions; `few_rows` chooses among them.
#pragma once

#include "few_rows.h"

namespace qwen_kernels {

// The arguments of few_rows.
struct Task {
    const float* rows;
    const void* matrix;
    Stored stored;
    float* out;
    std::size_t count;
    std::size_t height;
    std::size_t width;
};

// Rows [first, last) of the matrix. Only on processors that have the instructions.
void few_rows_avx2(const Task& task, std::size_t first, std::size_t last);

}  // namespace qwen_kernels
