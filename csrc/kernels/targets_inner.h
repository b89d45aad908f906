// All inner loops for one width of vectors: included by one file for each set of instructions, after it has chosen them.
#pragma once

#include "activations_inner.h"
#include "attention_inner.h"
#include "few_rows_inner.h"
#include "layer_step_inner.h"
#include "targets.h"

namespace qwen_kernels {
namespace {

template <typename Lanes, typename Number>
void norm_tensor_row(const Number* in, const Number* weight, Number* out, std::size_t width, float eps) {
    norm_row<Lanes>(in, weight, out, width, eps);
}

template <typename Lanes, typename Number>
void gate_tensor_row(const Number* in, Number* out, std::size_t width) {
    gate_row<Lanes, Number>(in, in + width, out, width);
}

template <typename Lanes, typename Number>
void rotate_tensor_head(const Number* in, const float* cosines, const float* sines, Number* out, std::size_t size) {
    rotate_head<Lanes, Number>(in, cosines, sines, out, size);
}

inline std::size_t attend_tensors_scratch(std::size_t count, std::size_t size) {
    return attention_scratch(count) + 2 * count * size;
}

template <typename Lanes, typename Number>
void attend_tensors(const Number* queries, const Number* keys, const Number* values, Number* out, std::size_t count,
                    std::size_t size, std::size_t first, std::size_t last, float scale, float* scratch) {
    float* const wide = scratch + attention_scratch(count);
    float* const found = wide + count * size;
    along<Lanes>(count * size, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        L::store(wide + i, L::load(queries + i));
    });
    attend<Lanes>(wide, keys, values, found, count, size, first, last, scale, scratch);
    along<Lanes>(count * size, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        L::store(out + i, L::load(found + i));
    });
}

template <typename Lanes, typename Number>
constexpr Passes<Number> passes() {
    return {streamed_products<Lanes, Number>,  norm_tensor_row<Lanes, Number>, gate_tensor_row<Lanes, Number>,
            rotate_tensor_head<Lanes, Number>, attend_tensors<Lanes, Number>,  attend_tensors_scratch,
            layer_of_thread<Lanes, Number>};
}

template <typename Lanes>
constexpr Target target() {
    return {passes<Lanes, float>(), passes<Lanes, std::uint16_t>()};
}

}  // namespace
}  // namespace qwen_kernels
