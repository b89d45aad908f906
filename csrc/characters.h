// What the kernels know about each code point: its kind in word segmentation, and its normalised form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "views.h"

namespace qwen_data {

constexpr std::size_t kCodePoints = 0x110000;

enum class Kind : std::uint8_t { symbol = 0, space = 1, letter = 2, number = 3, mark = 4, cjk = 5 };

// How normalisation treats a code point. `mapped`: replaced by a string, whatever stands around it. `lone_mark`: kept, if
// the character before it is kept as one starter. `context`: composes with, or is reordered around, its neighbours.
enum class Form : std::uint8_t { kept = 0, mapped = 1, lone_mark = 2, context = 3 };

// Table of all code points, built by data_tools.text.characters from Python's unicodedata.
//
// A class byte is kind | terminal << 3 | form << 4. `mapped_code_points` are ascending; the UTF-8 of the form of the
// i-th is `forms[form_starts[i]] .. forms[form_starts[i + 1] - 1]`.
class Characters {
  public:
    // Throws std::invalid_argument if the arrays do not fit together.
    Characters(View<const std::uint8_t> classes, View<const std::uint32_t> mapped_code_points,
               View<const std::uint32_t> form_starts, std::string_view forms);

    Kind kind(std::uint32_t c) const { return static_cast<Kind>(classes_[c] & 7); }
    bool is_space(std::uint32_t c) const { return kind(c) == Kind::space; }
    bool is_terminal(std::uint32_t c) const { return (classes_[c] & 8) != 0; }
    Form form(std::uint32_t c) const { return static_cast<Form>(classes_[c] >> 4); }
    std::string_view mapped(std::uint32_t c) const;

    // True if some character of `text` needs its context, so that normalize() cannot be used.
    bool needs_context(std::string_view text) const;

    // NFKC(case fold(NFKC(text))), white space collapsed to single spaces and none at the ends, into `out`; for texts
    // that do not need context. If `sources` is given it gets, for each byte of `out`, the number of the code point of
    // `text` that it comes from.
    void normalize(std::string_view text, std::string& out, std::vector<std::uint32_t>* sources = nullptr) const;

  private:
    std::vector<std::uint8_t> classes_;
    std::vector<std::uint32_t> mapped_code_points_;
    std::vector<std::uint32_t> form_starts_;
    std::string forms_;
};

}  // namespace qwen_data
