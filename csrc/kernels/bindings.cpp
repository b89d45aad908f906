// The Python module qwen_megatron._kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "activations.h"
#include "attention.h"
#include "few_rows.h"
#include "layer_step.h"

namespace py = pybind11;

namespace {

// Addresses come from torch tensors, whose layout qwen_megatron.platforms has checked. Calls `function` with a null pointer
// of the kind of numbers, without the interpreter's lock.
template <typename Function>
void with_numbers(bool is_bf16, Function function) {
    const py::gil_scoped_release release;
    if (is_bf16) {
        function(static_cast<const std::uint16_t*>(nullptr));
    } else {
        function(static_cast<const float*>(nullptr));
    }
}

template <typename Number>
const Number* at(std::uintptr_t address, const Number*) {
    return reinterpret_cast<const Number*>(address);
}
template <typename Number>
Number* mutable_at(std::uintptr_t address, const Number*) {
    return reinterpret_cast<Number*>(address);
}

void few_rows(std::uintptr_t rows, std::uintptr_t matrix, bool is_bf16, std::uintptr_t out, std::size_t count,
              std::size_t height, std::size_t width, int threads) {
    with_numbers(is_bf16, [&](auto kind) {
        qwen_kernels::few_rows(reinterpret_cast<const float*>(rows), at(matrix, kind), reinterpret_cast<float*>(out),
                               count, height, width, threads);
    });
}

void rms_norm(std::uintptr_t in, std::uintptr_t weight, std::uintptr_t out, bool is_bf16, std::size_t count,
              std::size_t width, float eps, int threads) {
    with_numbers(is_bf16, [&](auto kind) {
        qwen_kernels::rms_norm(at(in, kind), at(weight, kind), mutable_at(out, kind), count, width, eps, threads);
    });
}

void gate(std::uintptr_t in, std::uintptr_t out, bool is_bf16, std::size_t count, std::size_t width, int threads) {
    with_numbers(is_bf16, [&](auto kind) {
        qwen_kernels::gate(at(in, kind), mutable_at(out, kind), count, width, threads);
    });
}

void rotate(std::uintptr_t in, std::uintptr_t cosines, std::uintptr_t sines, std::uintptr_t out, bool is_bf16,
            const std::array<std::size_t, 4>& shape, const std::array<std::size_t, 3>& steps,
            const std::array<std::size_t, 2>& angle_steps, int threads) {
    const qwen_kernels::Heads heads{shape[0], shape[1], shape[2],       shape[3],      steps[0],
                                    steps[1], steps[2], angle_steps[0], angle_steps[1]};
    with_numbers(is_bf16, [&](auto kind) {
        qwen_kernels::rotate(at(in, kind), reinterpret_cast<const float*>(cosines),
                             reinterpret_cast<const float*>(sines), mutable_at(out, kind), heads, threads);
    });
}

void attention(std::uintptr_t queries, std::uintptr_t keys, std::uintptr_t values, std::uintptr_t out, bool is_bf16,
               const std::array<std::size_t, 4>& shape, const std::array<std::size_t, 2>& steps,
               const std::vector<std::size_t>& lengths, std::size_t window, float scale, int threads) {
    const qwen_kernels::Texts texts{shape[0], shape[1], shape[2], shape[3], steps[0],
                                    steps[1], lengths.data(), window, scale};
    with_numbers(is_bf16, [&](auto kind) {
        qwen_kernels::attention(at(queries, kind), at(keys, kind), at(values, kind), mutable_at(out, kind), texts,
                                threads);
    });
}

void layer_step(bool is_bf16, const std::array<std::size_t, 6>& sizes, const std::array<std::uintptr_t, 9>& weights,
                float eps, float scale, std::size_t window, const std::array<std::uintptr_t, 3>& positions,
                std::size_t angle_step, const std::array<std::uintptr_t, 2>& cache,
                const std::array<std::size_t, 2>& cache_steps, const std::vector<std::size_t>& offsets,
                std::uintptr_t in, std::uintptr_t out, int threads) {
    with_numbers(is_bf16, [&](auto kind) {
        using Number = std::remove_const_t<std::remove_pointer_t<decltype(kind)>>;
        qwen_kernels::LayerStep<Number> step{};
        step.rows = sizes[0], step.hidden = sizes[1], step.ffn = sizes[2];
        step.groups = sizes[3], step.queries = sizes[4], step.size = sizes[5];
        step.eps = eps, step.attention_scale = scale, step.window = window;
        const Number** const fields[] = {&step.input_norm, &step.qkv,        &step.qkv_bias,
                                         &step.query_norm, &step.key_norm,   &step.projection,
                                         &step.mlp_norm,   &step.gates_and_values, &step.output};
        for (std::size_t i = 0; i < weights.size(); ++i) {
            *fields[i] = at(weights[i], kind);
        }
        step.cosines = reinterpret_cast<const float*>(positions[0]);
        step.sines = reinterpret_cast<const float*>(positions[1]);
        step.query_factors = reinterpret_cast<const float*>(positions[2]);
        step.angle_step = angle_step;
        step.keys = mutable_at(cache[0], kind), step.values = mutable_at(cache[1], kind);
        step.row_step = cache_steps[0], step.group_step = cache_steps[1];
        step.offsets = offsets.data();
        step.in = at(in, kind), step.out = mutable_at(out, kind);
        qwen_kernels::layer_step(step, threads);
    });
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
    module.doc() = "Kernels of inference on the CPU.";
    module.def("few_rows", &few_rows, py::arg("rows"), py::arg("matrix"), py::arg("is_bf16"), py::arg("out"),
               py::arg("count"), py::arg("height"), py::arg("width"), py::arg("threads"),
               "out[r, o] = sum over i of rows[r, i] * matrix[o, i]; addresses of dense tensors.");
    module.def("rms_norm", &rms_norm, py::arg("in"), py::arg("weight"), py::arg("out"), py::arg("is_bf16"),
               py::arg("count"), py::arg("width"), py::arg("eps"), py::arg("threads"),
               "Rows divided by the root of their mean square, times a weight.");
    module.def("gate", &gate, py::arg("in"), py::arg("out"), py::arg("is_bf16"), py::arg("count"), py::arg("width"),
               py::arg("threads"), "silu of the first half of each row times the second.");
    module.def("rotate", &rotate, py::arg("in"), py::arg("cosines"), py::arg("sines"), py::arg("out"),
               py::arg("is_bf16"), py::arg("shape"), py::arg("steps"), py::arg("angle_steps"), py::arg("threads"),
               "Pairs (i, i + size / 2) of each head turned by the angles of its token.");
    module.def("attention", &attention, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("out"),
               py::arg("is_bf16"), py::arg("shape"), py::arg("steps"), py::arg("lengths"), py::arg("window"),
               py::arg("scale"), py::arg("threads"), "Attention of one token of each text to all of its text.");
    module.def("layer_step", &layer_step, py::arg("is_bf16"), py::arg("sizes"), py::arg("weights"), py::arg("eps"),
               py::arg("scale"), py::arg("window"), py::arg("positions"), py::arg("angle_step"), py::arg("cache"),
               py::arg("cache_steps"), py::arg("offsets"), py::arg("in"), py::arg("out"), py::arg("threads"),
               "A whole layer for one token of each text; the cache gets its keys and values.");
    module.def("is_fast", &qwen_kernels::is_fast, "Whether this processor has wide vectors.");
}
