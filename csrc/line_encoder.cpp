#include "line_encoder.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace qwen_data {

namespace {

// Of text: fewer than most texts have.
constexpr std::size_t kBytesPerToken = 3;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// As bytes.isspace() of Python.
bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos; }

// Calls visit(line, start, stop, is_too_long) for each line that is not blank; it stands from byte `start` to `stop`, and
// `line` is what counts of it. Returns how many there were; `num_lines` says meanwhile how many line ends there were.
template <typename Visit>
std::int64_t for_each_record(std::string_view block, bool begins_file, std::size_t max_line_bytes,
                             std::int64_t& num_lines, const Visit& visit) {
    std::int64_t num_records = 0;
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
            visit(line, start, stop, is_too_long);
            ++num_records;
        }
        num_lines += found != nullptr;
        start = stop + 1;
    }
    return num_records;
}

}  // namespace

LineCount count_records(std::string_view block, bool begins_file, std::size_t max_line_bytes) {
    LineCount count;
    count.records = for_each_record(block, begins_file, max_line_bytes, count.lines,
                                    [](std::string_view, std::size_t, std::size_t, bool) {});
    return count;
}

std::uint32_t* TokenBuffer::room(std::size_t count) {
    if (capacity_ - size_ < count) {
        resize(std::max(2 * capacity_, size_ + count));
    }
    return tokens_.get() + size_;
}

TokenBuffer::Tokens TokenBuffer::release() {
    resize(size_);
    size_ = capacity_ = 0;
    return std::move(tokens_);
}

void TokenBuffer::resize(std::size_t capacity) {
    // Not 0, for which there may be no block. The pages of a large one are moved, not copied.
    void* const block = std::realloc(tokens_.get(), std::max<std::size_t>(capacity, 1) * sizeof(std::uint32_t));
    if (block == nullptr) {
        throw std::bad_alloc();
    }
    static_cast<void>(tokens_.release());
    tokens_.reset(static_cast<std::uint32_t*>(block));
    capacity_ = capacity;
}

EncodedLines LineEncoder::encode(std::string_view block, bool begins_file, std::size_t max_line_bytes,
                                 Scratch& scratch) const {
    EncodedLines out;
    // Before there are any, so that few are moved to larger memory.
    out.tokens.room(block.size() / kBytesPerToken);
    std::int64_t record = 0;
    out.num_records = for_each_record(
        block, begins_file, max_line_bytes, out.num_lines,
        [&](std::string_view line, std::size_t start, std::size_t stop, bool is_too_long) {
            if (!is_too_long && encode_line(line, out, scratch)) {
                out.starts.push_back(static_cast<std::int64_t>(start));
                out.records.push_back(record);
                out.lines.push_back(out.num_lines);
            } else {
                out.odd.push_back(
                    {record, out.num_lines, static_cast<std::int64_t>(start), static_cast<std::int64_t>(stop)});
            }
            ++record;
        });
    return out;
}

bool LineEncoder::encode_line(std::string_view line, EncodedLines& out, Scratch& scratch) const {
    const std::string_view text = record_.text(line, scratch.text);
    const char* const end = text.data() + text.size();
    if (text.empty() || !nfc_.is_normalized(text.data(), end)) {
        return false;
    }
    std::uint32_t* const begin = out.tokens.room(text.size() + TextEncoder::kSlack);
    const std::uint32_t* const stop = encoder_.encode(text.data(), end, begin, scratch.encoder);
    out.lengths.push_back(static_cast<std::int32_t>(stop - begin));
    out.tokens.keep(stop);
    return true;
}

}  // namespace qwen_data
