// The Python module qwen_megatron._kernels.
#include <pybind11/pybind11.h>

#include "few_rows.h"

namespace py = pybind11;

namespace {

// Addresses come from torch tensors, whose layout qwen_megatron.platforms.few_rows has checked.
void few_rows(std::uintptr_t rows, std::uintptr_t matrix, bool is_bf16, std::uintptr_t out, std::size_t count,
              std::size_t height, std::size_t width, int threads) {
    const py::gil_scoped_release release;
    qwen_kernels::few_rows(reinterpret_cast<const float*>(rows), reinterpret_cast<const void*>(matrix),
                           is_bf16 ? qwen_kernels::Stored::bf16 : qwen_kernels::Stored::fp32,
                           reinterpret_cast<float*>(out), count, height, width, threads);
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
    module.doc() = "Kernels of inference on the CPU.";
    module.def("few_rows", &few_rows, py::arg("rows"), py::arg("matrix"), py::arg("is_bf16"), py::arg("out"),
               py::arg("count"), py::arg("height"), py::arg("width"), py::arg("threads"),
               "out[r, o] = sum over i of rows[r, i] * matrix[o, i]; addresses of dense tensors.");
    module.def("is_fast", &qwen_kernels::is_fast, "Whether this processor has wide vectors.");
}
