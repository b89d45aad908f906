// Connected components of a graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "views.h"

namespace qwen_data {

// roots[v] becomes the smallest vertex of the component of v; `roots` has one entry a vertex and says on entry which
// vertices are joined already (roots[v] = v for none). Union by smallest root with path halving (Tarjan and van Leeuwen
// 1984). `edges` are pairs (2 i, 2 i + 1). Throws std::out_of_range if an edge names no vertex or a root is not a smaller
// one.
void join_components(View<const std::int64_t> edges, View<std::int64_t> roots);

}  // namespace qwen_data
