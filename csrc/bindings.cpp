// The module data_tools._native: its subjects, and C++ errors as Python's.
#include "bindings.h"

#include <cerrno>
#include <exception>

#include "output_file.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of data_tools.";

    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const qwen_data::FileError& error) {
            // OSError picks the subclass (PermissionError, ...) by errno.
            errno = error.error_number();
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path().c_str());
        }
    });

    qwen_data::bindings::bind_corpus(module);
    qwen_data::bindings::bind_text(module);
    qwen_data::bindings::bind_dedup(module);
    qwen_data::bindings::bind_decontamination(module);
    qwen_data::bindings::bind_language(module);
    qwen_data::bindings::bind_quality(module);
    qwen_data::bindings::bind_tokenizer(module);
    qwen_data::bindings::bind_encoder(module);
}
