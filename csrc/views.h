// Read-only and writable views of arrays that belong to the caller.
#pragma once

#include <cstddef>

namespace qwen_data {

template <typename T>
struct View {
    T* data;
    std::size_t size;

    T& operator[](std::size_t index) const { return data[index]; }
    T* begin() const { return data; }
    T* end() const { return data + size; }
};

}  // namespace qwen_data
