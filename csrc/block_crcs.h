// CRC-32 (zlib's polynomial and conventions) of every block of a byte stream that comes in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "views.h"

namespace qwen_data {

// CRC-32 of what `crc` is the CRC-32 of, followed by `bytes`; 0 for `crc` begins.
//
// By carry-less multiplication where the processor has it, else, or with `portable`, by tables of 8 KiB.
std::uint32_t crc32(std::uint32_t crc, View<const std::uint8_t> bytes, bool portable = false);

// The block that a stream is in.
struct OpenBlock {
    std::uint32_t crc;
    std::size_t size;  // bytes of it so far, fewer than a block has
};

// CRCs of the blocks that end in `piece`, the next bytes of the stream; `open` is brought up to date.
std::vector<std::uint32_t> block_crcs(View<const std::uint8_t> piece, std::size_t block_bytes, OpenBlock& open,
                                      bool portable = false);

}  // namespace qwen_data
