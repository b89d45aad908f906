// Lines of JSON to token ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json_record.h"
#include "nfc_check.h"
#include "text_encoder.h"

namespace qwen_data {

// Token ids, one after the other, in memory that nobody has filled with zeros first and that grows in place where it can.
class TokenBuffer {
  public:
    struct Free {
        void operator()(std::uint32_t* tokens) const { std::free(tokens); }
    };
    using Tokens = std::unique_ptr<std::uint32_t[], Free>;

    std::size_t size() const { return size_; }

    // A place for `count` more tokens.
    std::uint32_t* room(std::size_t count);
    // Keeps what was written there up to `end`.
    void keep(const std::uint32_t* end) { size_ = static_cast<std::size_t>(end - tokens_.get()); }
    // Gives all tokens away, in a block of their size; what it held is forgotten.
    Tokens release();

  private:
    void resize(std::size_t capacity);

    Tokens tokens_;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

// A line that is left to the caller.
struct OddLine {
    std::int64_t record;  // its number among the lines that are not blank, from 0
    std::int64_t line;    // its number among all lines, from 0
    std::int64_t start;   // its bytes, without the line end
    std::int64_t stop;
};

// What a block of lines gave.
struct EncodedLines {
    TokenBuffer tokens;                  // of all documents
    std::vector<std::int32_t> lengths;   // tokens of each document
    std::vector<std::int64_t> starts;    // byte at which its line begins
    std::vector<std::int64_t> records;   // number of its line among those that are not blank
    std::vector<std::int64_t> lines;     // number of its line among all
    std::vector<OddLine> odd;
    std::int64_t num_records = 0;
    std::int64_t num_lines = 0;    // line ends
};

// What a block of lines is made of.
struct LineCount {
    std::int64_t lines = 0;    // line ends
    std::int64_t records = 0;  // lines that are not blank
};

// Counts as LineEncoder::encode does, which see.
LineCount count_records(std::string_view block, bool begins_file, std::size_t max_line_bytes);

// Encodes the texts of plain records in form C, and tells which lines are others.
class LineEncoder {
  public:
    // What one thread works with.
    struct Scratch {
        TextEncoder::Scratch encoder;
        std::vector<char> text;
    };

    // Records have their text under `key`. `encoder` and `nfc` must outlive this object.
    LineEncoder(const TextEncoder& encoder, const NfcCheck& nfc, std::string key)
        : encoder_(encoder), nfc_(nfc), record_(std::move(key)) {}

    // Encodes whole lines; the last one may lack its line end. A byte-order mark that begins the first line of a file, a
    // carriage return that ends a line, and lines of white space only are passed over. Lines of more than `max_line_bytes`
    // are odd.
    EncodedLines encode(std::string_view block, bool begins_file, std::size_t max_line_bytes, Scratch& scratch) const;

  private:
    bool encode_line(std::string_view line, EncodedLines& out, Scratch& scratch) const;

    const TextEncoder& encoder_;
    const NfcCheck& nfc_;
    JsonRecord record_;
};

}  // namespace qwen_data
