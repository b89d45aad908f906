// Bindings of what writes a corpus: documents gathered in order, the index.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "gather.h"
#include "index_writer.h"

namespace qwen_data::bindings {

namespace {

std::size_t gather_documents(const std::vector<Array<std::int32_t>>& spools, const Array<std::int64_t>& starts,
                             const Array<std::int32_t>& lengths, const Array<std::int64_t>& order,
                             std::int32_t end_of_document, Array<std::int32_t>& out) {
    std::vector<View<const std::int32_t>> spool_views;
    for (const Array<std::int32_t>& spool : spools) {
        spool_views.push_back(view(spool, "spool"));
    }
    const auto starts_view = view(starts, "starts");
    const auto lengths_view = view(lengths, "lengths");
    const auto order_view = view(order, "order");
    const auto out_view = writable_view(out, "out");
    py::gil_scoped_release release;
    return qwen_data::gather_documents(spool_views, starts_view, lengths_view, order_view, end_of_document, out_view);
}

void write_index(const std::string& path, const Array<std::int32_t>& lengths, std::uint8_t dtype_code,
                 std::int64_t itemsize) {
    const auto lengths_view = view(lengths, "lengths");
    py::gil_scoped_release release;
    qwen_data::write_index(path, lengths_view, dtype_code, itemsize);
}

}  // namespace

void bind_corpus(py::module_& module) {
    module.def("gather_documents", &gather_documents, py::arg("spools").noconvert(), py::arg("starts").noconvert(),
               py::arg("lengths").noconvert(), py::arg("order").noconvert(), py::arg("end_of_document"),
               py::arg("out").noconvert(),
               "Copies documents `order` from the spools, whose tokens are counted through, into `out`, each followed by "
               "end_of_document; returns the number of tokens written. Raises IndexError if a document leaves its spool "
               "or `out` is too small.");
    module.def("write_index", &write_index, py::arg("path"), py::arg("lengths").noconvert(), py::arg("dtype_code"),
               py::arg("itemsize"),
               "Writes Megatron's .idx for documents of one sequence each, lying back to back, atomically. Raises "
               "OSError with errno and file name.");
}

}  // namespace qwen_data::bindings
