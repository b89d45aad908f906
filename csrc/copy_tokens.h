// A few tokens from one place to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qwen_data {

// So many more than it is told are read and written by copy_tokens, whatever they are.
constexpr std::size_t kSlackTokens = 3;

// Copies `count` tokens and returns the place behind them in `out`. Four at a time, for a copy of any size would be a call.
inline std::uint32_t* copy_tokens(const std::uint32_t* tokens, std::size_t count, std::uint32_t* out) {
    for (std::size_t i = 0; i < count; i += 4) {
        std::memcpy(out + i, tokens + i, 4 * sizeof(std::uint32_t));
    }
    return out + count;
}

}  // namespace qwen_data
