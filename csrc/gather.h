// Collects documents from token spools in a given order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "views.h"

namespace qwen_data {

// Writes documents `order[0]`, `order[1]`, ... one after the other into `out`, each followed by `end_of_document`.
//
// Document d is the tokens starts[d] .. starts[d] + lengths[d] - 1 of the spools, counted as if they lay one after the
// other. Returns the number of tokens written.
// Throws std::out_of_range before anything is written if an entry of `order` is not a document, a document leaves
// its spool, or `out` is too small. The arrays must not overlap.
std::size_t gather_documents(const std::vector<View<const std::int32_t>>& spools, View<const std::int64_t> starts,
                             View<const std::int32_t> lengths, View<const std::int64_t> order,
                             std::int32_t end_of_document, View<std::int32_t> out);

}  // namespace qwen_data
