#include "json_strings.h"

#include <algorithm>
#include <cstring>

namespace qwen_data {

std::vector<std::pair<std::size_t, std::size_t>> json_strings(std::string_view text, std::size_t min_bytes) {
    std::vector<std::pair<std::size_t, std::size_t>> found;
    std::size_t position = 0;
    while (position < text.size()) {
        const void* quote = std::memchr(text.data() + position, '"', text.size() - position);
        if (quote == nullptr) {
            break;
        }
        const std::size_t start = static_cast<std::size_t>(static_cast<const char*>(quote) - text.data()) + 1;
        std::size_t stop = start;
        while (stop < text.size() && text[stop] != '"') {
            stop += text[stop] == '\\' ? 2 : 1;
        }
        stop = std::min(stop, text.size());
        if (stop - start >= min_bytes) {
            found.emplace_back(start, stop);
        }
        position = stop + 1;
    }
    return found;
}

}  // namespace qwen_data
