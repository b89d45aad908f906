// The only file that knows pybind11: checks arrays, releases the GIL, turns errors into Python's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "gather.h"
#include "index_writer.h"
#include "output_file.h"

namespace py = pybind11;
using qwen_data::View;

namespace {

// No conversion: a wrong dtype or a strided array is a TypeError, never a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
View<const T> view(const Array<T>& array, const char* name) {
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, has " + std::to_string(array.ndim()));
    }
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
View<T> writable_view(Array<T>& array, const char* name) {
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, has " + std::to_string(array.ndim()));
    }
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

std::size_t gather_documents(const Array<std::int32_t>& spool, const Array<std::int64_t>& starts,
                             const Array<std::int32_t>& lengths, const Array<std::int64_t>& order,
                             std::int32_t end_of_document, Array<std::int32_t>& out) {
    const auto spool_view = view(spool, "spool");
    const auto starts_view = view(starts, "starts");
    const auto lengths_view = view(lengths, "lengths");
    const auto order_view = view(order, "order");
    const auto out_view = writable_view(out, "out");
    py::gil_scoped_release release;
    return qwen_data::gather_documents(spool_view, starts_view, lengths_view, order_view, end_of_document, out_view);
}

void write_index(const std::string& path, const Array<std::int32_t>& lengths, std::uint8_t dtype_code,
                 std::int64_t itemsize) {
    const auto lengths_view = view(lengths, "lengths");
    py::gil_scoped_release release;
    qwen_data::write_index(path, lengths_view, dtype_code, itemsize);
}

}  // namespace

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

    module.def("gather_documents", &gather_documents, py::arg("spool").noconvert(), py::arg("starts").noconvert(),
               py::arg("lengths").noconvert(), py::arg("order").noconvert(), py::arg("end_of_document"),
               py::arg("out").noconvert(),
               "Copies documents `order` from the spool into `out`, each followed by end_of_document; returns the "
               "number of tokens written. Raises IndexError if a document leaves the spool or `out` is too small.");
    module.def("write_index", &write_index, py::arg("path"), py::arg("lengths").noconvert(), py::arg("dtype_code"),
               py::arg("itemsize"),
               "Writes Megatron's .idx for documents of one sequence each, lying back to back, atomically. Raises "
               "OSError with errno and file name.");
}
