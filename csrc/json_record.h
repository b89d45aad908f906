// The text of a record of JSON Lines, without parsing what else is in it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qwen_data {

// Finds the string that the object on a line has under one key.
//
// It takes plain, well-formed records only: an object that has the key once, no escapes in the names of its keys, numbers
// of common lengths, little nesting, valid UTF-8, no lone surrogates, no empty text. Whatever it takes, a strict parser of
// JSON takes too, and finds the same string; of what it does not take it says nothing.
class JsonRecord {
  public:
    explicit JsonRecord(std::string key) : key_(std::move(key)) {}

    // The text of the record in `line`, its escapes resolved, with kPadding (word_key.h) readable bytes behind it; empty if
    // the record is not plain. Valid until `buffer` changes.
    std::string_view text(std::string_view line, std::vector<char>& buffer) const;

  private:
    std::string key_;
};

}  // namespace qwen_data
