// Bindings of what writes and checks a corpus: documents gathered in order, the index, checksums of blocks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "block_crcs.h"
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

py::tuple block_crcs(const Array<std::uint8_t>& piece, std::size_t block_bytes, std::uint32_t open_crc,
                     std::size_t open_bytes, bool portable) {
    const auto bytes = view(piece, "piece");
    if (open_bytes >= block_bytes) {
        throw py::value_error("open_bytes=" + std::to_string(open_bytes) +
                              " must be below block_bytes=" + std::to_string(block_bytes));
    }
    OpenBlock open{open_crc, open_bytes};
    std::vector<std::uint32_t> ended;
    {
        py::gil_scoped_release release;
        ended = qwen_data::block_crcs(bytes, block_bytes, open, portable);
    }
    return py::make_tuple(Array<std::uint32_t>(extent(ended.size()), ended.data()), open.crc, open.size);
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
    module.def("block_crcs", &block_crcs, py::arg("piece").noconvert(), py::arg("block_bytes"), py::arg("open_crc"),
               py::arg("open_bytes"), py::arg("portable") = false,
               "CRC-32 of the blocks that end in `piece`, the next bytes of a stream whose open block has the CRC "
               "`open_crc` so far, of `open_bytes` bytes; returns them as uint32 with the new open_crc and open_bytes. "
               "`portable` says to do without the processor's carry-less multiplication. Raises ValueError if "
               "open_bytes is not below block_bytes.");
}

}  // namespace qwen_data::bindings
