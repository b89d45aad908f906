// What one thread does of a layer, for any width of vectors.
//
// Between the products everything is in fp32, rounded where a tensor of `Number` would stand.
#pragma once

#include "activations_inner.h"
#include "attention_inner.h"
#include "few_rows_inner.h"
#include "layer_step.h"

namespace qwen_kernels {
namespace {

// The parts of a product that this thread gets: `finish(first, last, found)` takes rows [first, last) of the matrix, found
// as [count, last - first].
template <typename Lanes, typename Number, typename Finish>
inline void product_in_parts(LayerScratch& scratch, Phase phase, const float* rows, const Number* matrix,
                             std::size_t count, std::size_t height, std::size_t width, float* found, Finish finish) {
    const std::size_t step = part_height(width, sizeof(Number));
    for (std::size_t first = taken_part(scratch, phase) * step; first < height;
         first = taken_part(scratch, phase) * step) {
        const std::size_t last = first + step < height ? first + step : height;
        streamed_products<Lanes>(rows, matrix + first * width, found, count, last - first, width, 0, last - first);
        finish(first, last, found);
    }
}

template <typename Lanes, typename Number>
inline void round_all(float* values, std::size_t count) {
    along<Lanes>(count, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        keep<L, Number>(values + i, L::load(values + i));
    });
}

// out = found + residual, each row from `first` on.
template <typename Lanes, typename Number, typename In, typename Out>
inline void add_residual(const float* found, const In* residual, Out* out, std::size_t rows, std::size_t stride,
                         std::size_t first, std::size_t last) {
    const Number* const kind = nullptr;
    for (std::size_t row = 0; row < rows; ++row) {
        const float* const from = found + row * (last - first);
        const std::size_t at = row * stride + first;
        along<Lanes>(last - first, [&](auto lanes, std::size_t i) {
            using L = decltype(lanes);
            const auto value = rounded<L>(L::load(from + i), kind);
            keep<L, Number>(out + at + i, L::add(value, L::load(residual + at + i)));
        });
    }
}

// One group of one row: its key and value join the cache, its queries look at all that is there.
template <typename Lanes, typename Number>
void attend_group(const LayerStep<Number>& step, const LayerScratch& scratch, std::size_t row, std::size_t group,
                  float* own) {
    const std::size_t size = step.size, offset = step.offsets[row], place = row * step.row_step + group * step.group_step;
    const float* const cosines = step.cosines + row * step.angle_step;
    const float* const sines = step.sines + row * step.angle_step;
    float* const queries = scratch.qkv + row * step.qkv_width() + group * (step.queries + 2) * size;
    float* const key = queries + step.queries * size;
    const float* const factor = step.query_factors == nullptr ? nullptr : step.query_factors + row;
    for (std::size_t query = 0; query < step.queries; ++query) {
        float* const head = queries + query * size;
        if (step.query_norm != nullptr) {
            norm_row<Lanes>(head, step.query_norm, head, size, step.eps);
        }
        rotate_head<Lanes, Number>(head, cosines, sines, head, size, factor);
    }
    if (step.key_norm != nullptr) {
        norm_row<Lanes>(key, step.key_norm, key, size, step.eps);
    }
    rotate_head<Lanes, Number>(key, cosines, sines, step.keys + place + offset * size, size);
    along<Lanes>(size, [&](auto lanes, std::size_t i) {
        using L = decltype(lanes);
        L::store(step.values + place + offset * size + i, L::load(key + size + i));
    });
    const std::size_t first = step.window == 0 || step.window > offset ? 0 : offset + 1 - step.window;
    float* const found = scratch.attended + row * step.attended_width() + group * step.queries * size;
    attend<Lanes>(queries, step.keys + place, step.values + place, found, step.queries, size, first, offset + 1,
                  step.attention_scale, own);
    round_all<Lanes, Number>(found, step.queries * size);
}

template <typename Lanes, typename Number>
void attention_of_thread(const LayerStep<Number>& step, LayerScratch& scratch, float* normed, float* own, int threads) {
    for (std::size_t row = 0; row < step.rows; ++row) {
        // Each thread for itself: it costs less than to wait for another.
        const std::size_t at = row * step.hidden;
        norm_row<Lanes>(step.in + at, step.input_norm, normed + at, step.hidden, step.eps);
    }
    const std::size_t width = step.qkv_width();
    product_in_parts<Lanes>(
        scratch, kQkv, normed, step.qkv, step.rows, width, step.hidden, own,
        [&](std::size_t first, std::size_t last, const float* found) {
            for (std::size_t row = 0; row < step.rows; ++row) {
                const float* const from = found + row * (last - first);
                along<Lanes>(last - first, [&](auto lanes, std::size_t i) {
                    using L = decltype(lanes);
                    auto value = L::load(from + i);
                    if (step.qkv_bias != nullptr) {
                        value = L::add(value, L::load(step.qkv_bias + first + i));
                    }
                    keep<L, Number>(scratch.qkv + row * width + first + i, value);
                });
            }
        });
    meet(scratch, threads);
    const std::size_t parts = step.rows * step.groups;
    for (std::size_t part = taken_part(scratch, kAttention); part < parts; part = taken_part(scratch, kAttention)) {
        attend_group<Lanes>(step, scratch, part / step.groups, part % step.groups, own);
    }
    meet(scratch, threads);
    product_in_parts<Lanes>(scratch, kProjection, scratch.attended, step.projection, step.rows, step.hidden,
                            step.attended_width(), own,
                            [&](std::size_t first, std::size_t last, const float* found) {
                                add_residual<Lanes, Number>(found, step.in, scratch.residual, step.rows, step.hidden,
                                                            first, last);
                            });
    meet(scratch, threads);
}

template <typename Lanes, typename Number>
void feed_forward_of_thread(const LayerStep<Number>& step, LayerScratch& scratch, float* normed, float* own,
                            int threads) {
    for (std::size_t row = 0; row < step.rows; ++row) {
        const std::size_t at = row * step.hidden;
        norm_row<Lanes>(scratch.residual + at, step.mlp_norm, normed + at, step.hidden, step.eps);
    }
    const Number* const weights_of_values = step.gates_and_values + step.ffn * step.hidden;
    float* const values = own + step.rows * part_height(step.hidden, sizeof(Number));
    product_in_parts<Lanes>(
        scratch, kGates, normed, step.gates_and_values, step.rows, step.ffn, step.hidden, own,
        [&](std::size_t first, std::size_t last, float* gates) {
            const std::size_t taken = last - first;
            streamed_products<Lanes>(normed, weights_of_values + first * step.hidden, values, step.rows, taken,
                                     step.hidden, 0, taken);
            round_all<Lanes, Number>(gates, step.rows * taken);
            round_all<Lanes, Number>(values, step.rows * taken);
            for (std::size_t row = 0; row < step.rows; ++row) {
                gate_row<Lanes, Number>(gates + row * taken, values + row * taken,
                                        scratch.activations + row * step.ffn + first, taken);
            }
        });
    meet(scratch, threads);
    product_in_parts<Lanes>(scratch, kOutput, scratch.activations, step.output, step.rows, step.hidden, step.ffn, own,
                            [&](std::size_t first, std::size_t last, const float* found) {
                                add_residual<Lanes, Number>(found, scratch.residual, step.out, step.rows, step.hidden,
                                                            first, last);
                            });
}

// Floats of `own`: the normed rows, then room for a part of a product or for the attention of a group.
template <typename Number>
std::size_t own_floats(const LayerStep<Number>& step) {
    std::size_t most = attention_scratch(step.queries);
    for (const std::size_t width : {step.hidden, step.attended_width(), step.ffn}) {
        const std::size_t part = 2 * step.rows * part_height(width, sizeof(Number));
        most = part > most ? part : most;
    }
    return step.rows * step.hidden + most;
}

template <typename Lanes, typename Number>
void layer_of_thread(const LayerStep<Number>& step, LayerScratch& scratch, int thread, int threads) {
    float* const normed = scratch.own + static_cast<std::size_t>(thread) * scratch.own_floats;
    float* const own = normed + step.rows * step.hidden;
    attention_of_thread<Lanes>(step, scratch, normed, own, threads);
    feed_forward_of_thread<Lanes>(step, scratch, normed, own, threads);
}

}  // namespace
}  // namespace qwen_kernels
