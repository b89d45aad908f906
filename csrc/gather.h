// Collects documents from a token spool in a given order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "views.h"

namespace qwen_data {

// Writes documents `order[0]`, `order[1]`, ... one after the other into `out`, each followed by `end_of_document`.
//
// Document d is spool[starts[d]] .. spool[starts[d] + lengths[d] - 1]. Returns the number of tokens written.
// Throws std::out_of_range before anything is written if an entry of `order` is not a document, a document leaves
// the spool, or `out` is too small. The arrays must not overlap.
std::size_t gather_documents(View<const std::int32_t> spool, View<const std::int64_t> starts,
                             View<const std::int32_t> lengths, View<const std::int64_t> order,
                             std::int32_t end_of_document, View<std::int32_t> out);

}  // namespace qwen_data
