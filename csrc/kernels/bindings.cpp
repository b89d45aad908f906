// The Python module qwen_megatron._kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "activations.h"
#include "few_rows.h"

namespace py = pybind11;

namespace {

// Addresses come from torch tensors, whose layout qwen_megatron.platforms has checked.
void few_rows(std::uintptr_t rows, std::uintptr_t matrix, bool is_bf16, std::uintptr_t out, std::size_t count,
              std::size_t height, std::size_t width, int threads) {
    const py::gil_scoped_release release;
    qwen_kernels::few_rows(reinterpret_cast<const float*>(rows), reinterpret_cast<const void*>(matrix),
                           is_bf16 ? qwen_kernels::Stored::bf16 : qwen_kernels::Stored::fp32,
                           reinterpret_cast<float*>(out), count, height, width, threads);
}

// The same for numbers of either kind.
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
    module.def("is_fast", &qwen_kernels::is_fast, "Whether this processor has wide vectors.");
}
