#include "gather.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace qwen_data {

std::size_t gather_documents(View<const std::int32_t> spool, View<const std::int64_t> starts,
                             View<const std::int32_t> lengths, View<const std::int64_t> order,
                             std::int32_t end_of_document, View<std::int32_t> out) {
    if (starts.size != lengths.size) {
        throw std::out_of_range("gather_documents: " + std::to_string(starts.size) + " starts but " +
                                std::to_string(lengths.size) + " lengths");
    }
    const auto spool_size = static_cast<std::int64_t>(spool.size);
    std::size_t needed = 0;
    for (const std::int64_t document : order) {
        if (document < 0 || document >= static_cast<std::int64_t>(starts.size)) {
            throw std::out_of_range("gather_documents: order names document " + std::to_string(document) + " of " +
                                    std::to_string(starts.size));
        }
        const auto index = static_cast<std::size_t>(document);
        const std::int64_t start = starts[index];
        const std::int64_t length = lengths[index];
        if (length < 0 || start < 0 || start > spool_size || length > spool_size - start) {
            throw std::out_of_range("gather_documents: document " + std::to_string(document) + " with start " +
                                    std::to_string(start) + " and length " + std::to_string(length) +
                                    " leaves the spool of " + std::to_string(spool_size) + " tokens");
        }
        needed += static_cast<std::size_t>(length) + 1;
    }
    if (needed > out.size) {
        throw std::out_of_range("gather_documents: " + std::to_string(needed) + " tokens do not fit into " +
                                std::to_string(out.size));
    }
    std::int32_t* position = out.data;
    for (const std::int64_t document : order) {
        const auto index = static_cast<std::size_t>(document);
        position = std::copy_n(spool.data + starts[index], lengths[index], position);
        *position++ = end_of_document;
    }
    return needed;
}

}  // namespace qwen_data
