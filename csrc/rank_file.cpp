#include "rank_file.h"

#include <array>
#include <cstdint>
#include <stdexcept>

namespace qwen_data {

namespace {

constexpr std::uint8_t kNoDigit = 64;

std::array<std::uint8_t, 256> make_digits() {
    std::array<std::uint8_t, 256> digits{};
    digits.fill(kNoDigit);
    constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::size_t value = 0; value < alphabet.size(); ++value) {
        digits[static_cast<unsigned char>(alphabet[value])] = static_cast<std::uint8_t>(value);
    }
    return digits;
}

// Appends the bytes that `text` stands for; false if it is not base64 in groups of four.
bool decode_base64(std::string_view text, std::string& out) {
    static const std::array<std::uint8_t, 256> digits = make_digits();
    if (text.empty() || text.size() % 4 != 0) {
        return false;
    }
    const std::size_t padding = text.back() != '=' ? 0 : text[text.size() - 2] != '=' ? 1 : 2;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool is_padding = i >= text.size() - padding;
        const std::uint8_t digit = is_padding ? 0 : digits[static_cast<unsigned char>(text[i])];
        if (digit == kNoDigit) {
            return false;
        }
        bits = bits << 6 | digit;
        if (i % 4 == 3) {
            out += static_cast<char>(bits >> 16);
            out += static_cast<char>(bits >> 8);
            out += static_cast<char>(bits);
        }
    }
    out.resize(out.size() - padding);
    return true;
}

}  // namespace

RankFile::RankFile(std::string_view content) : starts_(1, 0) {
    std::size_t rank = 0;
    for (std::size_t start = 0; start < content.size(); ++rank) {
        const std::size_t stop = std::min(content.find('\n', start), content.size());
        std::string_view line = content.substr(start, stop - start);
        if (!line.empty() && line.back() == '\r') {
            line.remove_suffix(1);
        }
        const std::size_t space = line.find(' ');
        if (space == std::string_view::npos || line.substr(space + 1) != std::to_string(rank) ||
            !decode_base64(line.substr(0, space), text_)) {
            throw std::invalid_argument("line " + std::to_string(rank + 1) + " is not a token in base64 and the rank " +
                                        std::to_string(rank));
        }
        starts_.push_back(text_.size());
        start = stop + 1;
    }
}

std::vector<std::string_view> RankFile::tokens() const {
    std::vector<std::string_view> tokens;
    tokens.reserve(starts_.size() - 1);
    for (std::size_t rank = 0; rank + 1 < starts_.size(); ++rank) {
        tokens.push_back(std::string_view(text_).substr(starts_[rank], starts_[rank + 1] - starts_[rank]));
    }
    return tokens;
}

}  // namespace qwen_data
