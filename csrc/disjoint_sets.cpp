#include "disjoint_sets.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace qwen_data {

namespace {

std::int64_t find_root(View<std::int64_t> roots, std::int64_t vertex) {
    const auto parent = [&](std::int64_t v) -> std::int64_t& { return roots[static_cast<std::size_t>(v)]; };
    while (parent(vertex) != vertex) {
        parent(vertex) = parent(parent(vertex));
        vertex = parent(vertex);
    }
    return vertex;
}

}  // namespace

void join_components(View<const std::int64_t> edges, View<std::int64_t> roots) {
    const auto num_vertices = static_cast<std::int64_t>(roots.size);
    for (std::int64_t vertex = 0; vertex < num_vertices; ++vertex) {
        const std::int64_t root = roots[static_cast<std::size_t>(vertex)];
        if (root < 0 || root > vertex) {
            throw std::out_of_range("join_components: root " + std::to_string(root) + " of vertex " +
                                    std::to_string(vertex));
        }
    }
    for (const std::int64_t vertex : edges) {
        if (vertex < 0 || vertex >= num_vertices) {
            throw std::out_of_range("join_components: an edge names vertex " + std::to_string(vertex) + " of " +
                                    std::to_string(num_vertices));
        }
    }
    for (std::size_t edge = 0; edge + 1 < edges.size; edge += 2) {
        std::int64_t a = find_root(roots, edges[edge]);
        std::int64_t b = find_root(roots, edges[edge + 1]);
        if (a > b) {
            std::swap(a, b);
        }
        roots[static_cast<std::size_t>(b)] = a;
    }
    for (std::int64_t vertex = 0; vertex < num_vertices; ++vertex) {
        roots[static_cast<std::size_t>(vertex)] = find_root(roots, vertex);
    }
}

}  // namespace qwen_data
