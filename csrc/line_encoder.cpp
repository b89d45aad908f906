#include "line_encoder.h"

#include <algorithm>
#include <cstring>

namespace qwen_data {

namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// As bytes.isspace() of Python.
bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos; }

}  // namespace

std::uint32_t* TokenBuffer::room(std::size_t count) {
    if (capacity_ - size_ < count) {
        capacity_ = std::max(2 * capacity_, size_ + count);
        std::unique_ptr<std::uint32_t[]> larger(new std::uint32_t[capacity_]);
        std::copy_n(tokens_.get(), size_, larger.get());
        tokens_ = std::move(larger);
    }
    return tokens_.get() + size_;
}

EncodedLines LineEncoder::encode(std::string_view block, bool begins_file, std::size_t max_line_bytes,
                                 Scratch& scratch) const {
    EncodedLines out;
    scratch.tokens.clear();
    for (std::size_t start = 0; start < block.size();) {
        const void* const found = std::memchr(block.data() + start, '\n', block.size() - start);
        const std::size_t stop =
            found == nullptr ? block.size() : static_cast<std::size_t>(static_cast<const char*>(found) - block.data());
        std::string_view line = block.substr(start, stop - start);
        const bool is_too_long = line.size() > max_line_bytes;
        if (begins_file && start == 0 && line.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
            line.remove_prefix(kByteOrderMark.size());
        }
        if (!line.empty() && line.back() == '\r') {
            line.remove_suffix(1);
        }
        if (is_too_long || !is_blank(line)) {
            if (!is_too_long && encode_line(line, out, scratch)) {
                out.starts.push_back(static_cast<std::int64_t>(start));
                out.records.push_back(out.num_records);
                out.lines.push_back(out.num_lines);
            } else {
                out.odd.push_back({out.num_records, out.num_lines, static_cast<std::int64_t>(start),
                                   static_cast<std::int64_t>(stop)});
            }
            ++out.num_records;
        }
        out.num_lines += found != nullptr;
        start = stop + 1;
    }
    return out;
}

bool LineEncoder::encode_line(std::string_view line, EncodedLines& out, Scratch& scratch) const {
    const std::string_view text = record_.text(line, scratch.text);
    const char* const end = text.data() + text.size();
    if (text.empty() || !nfc_.is_normalized(text.data(), end)) {
        return false;
    }
    std::uint32_t* const begin = scratch.tokens.room(text.size() + TextEncoder::kSlack);
    const std::uint32_t* const stop = encoder_.encode(text.data(), end, begin, scratch.encoder);
    out.lengths.push_back(static_cast<std::int32_t>(stop - begin));
    scratch.tokens.keep(stop);
    return true;
}

}  // namespace qwen_data
