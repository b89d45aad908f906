#include "utf8.h"

#include <cstring>

namespace qwen_data {

std::size_t first_invalid_utf8(const char* data, std::size_t size) {
    const auto byte = [data](std::size_t at) { return static_cast<unsigned char>(data[at]); };
    std::size_t at = 0;
    while (at < size) {
        if (size - at >= 8) {
            std::uint64_t word;
            std::memcpy(&word, data + at, 8);
            if ((word & 0x8080808080808080ULL) == 0) {
                at += 8;
                continue;
            }
        }
        const unsigned char lead = byte(at);
        if (lead < 0x80) {
            ++at;
            continue;
        }
        if (lead < 0xC2 || lead > 0xF4) {
            return at;
        }
        const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        if (size - at < length) {
            return at;
        }
        for (std::size_t i = 1; i < length; ++i) {
            if (!is_continuation(data[at + i])) {
                return at;
            }
        }
        const unsigned char second = byte(at + 1);
        const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
        const bool surrogate = lead == 0xED && second > 0x9F;
        const bool too_large = lead == 0xF4 && second > 0x8F;
        if (overlong || surrogate || too_large) {
            return at;
        }
        at += length;
    }
    return size;
}

}  // namespace qwen_data
