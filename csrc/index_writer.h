// Megatron's index file (.idx, "MMIDIDX").
#pragma once

#include <cstdint>
#include <string>

#include "views.h"

namespace qwen_data {

// Writes the index of a token file whose documents are one sequence each, back to back from byte 0.
//
// Layout, little-endian: "MMIDIDX\0\0" | u64 1 | u8 dtype_code | u64 N | u64 N + 1 | i32 lengths[N] |
// i64 byte offsets[N] | i64 document indices 0..N; 42 + 20 N bytes. The bytes equal those of megatron-core 0.16.1's
// IndexedDatasetBuilder. `lengths` are tokens, `itemsize` bytes of a token.
// Throws FileError on a failed system call, std::invalid_argument on a negative length, std::overflow_error if a byte
// offset does not fit 63 bits.
void write_index(const std::string& path, View<const std::int32_t> lengths, std::uint8_t dtype_code,
                 std::int64_t itemsize);

}  // namespace qwen_data
