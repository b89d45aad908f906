// The one word segmentation of all kernels.
#pragma once

#include <cstdint>
#include <string_view>

#include "characters.h"
#include "utf8.h"

namespace qwen_data {

struct Word {
    const char* begin;
    const char* end;
    std::uint32_t num_code_points;
    bool is_cjk;       // One Chinese character or Japanese kana.
    bool has_letter;   // A letter of any script, CJK included.
    bool is_symbol;    // No letter, number or CJK character.
};

// True for what may stand in a URL amid text: brackets, quotation marks and what Markdown, TeX and tables put around an
// address end it, and so does everything that is not ASCII.
constexpr bool may_be_in_url(unsigned char c) {
    return c > ' ' && c < 0x7F && c != '"' && c != '\'' && c != '<' && c != '>' && c != '[' && c != ']' && c != '\\' &&
           c != '^' && c != '`' && c != '{' && c != '|' && c != '}';
}

constexpr bool is_ascii_letter(unsigned char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }
constexpr bool is_ascii_letter_or_digit(unsigned char c) { return is_ascii_letter(c) || (c >= '0' && c <= '9'); }

// True if the word from `begin` to `p` is the scheme of a URL, or the www that begins one.
inline bool begins_url(const char* begin, const char* p, const char* text_end) {
    if (text_end - p > 3 && p[0] == ':' && p[1] == '/' && p[2] == '/') {
        if (!is_ascii_letter(*begin) || !(is_ascii_letter_or_digit(p[3]) || p[3] == '/')) {
            return false;
        }
        while (begin != p && is_ascii_letter_or_digit(*begin)) {
            ++begin;
        }
        return begin == p;
    }
    return p - begin == 3 && text_end - p > 1 && p[0] == '.' && is_ascii_letter_or_digit(p[1]) &&
           (begin[0] | 0x20) == 'w' && (begin[1] | 0x20) == 'w' && (begin[2] | 0x20) == 'w';
}

// Where the URL ends of which `p` is a part: before a bracket that it does not open, and before the punctuation of the
// sentence it stands in.
inline const char* end_of_url(const char* p, const char* text_end) {
    const char* const begin = p;
    std::uint32_t open = 0;
    for (; p != text_end && may_be_in_url(*p); ++p) {
        if (*p == '(') {
            ++open;
        } else if (*p == ')' && open-- == 0) {
            break;
        }
    }
    while (p != begin && std::string_view(".,;:!?*_~(").find(p[-1]) != std::string_view::npos) {
        --p;
    }
    return p;
}

// Calls visit(word) for each word of `text` (valid UTF-8), in order.
//
// - White space separates and belongs to no word.
// - A Chinese character or kana is a word.
// - A run of letters, numbers, marks, underscores and zero-width joiners is a word. An apostrophe (' or U+2019) between
//   two letters and a full stop or comma between two numbers do not end it.
// - A URL is a word: letters and "://", or "www.", and what follows as far as `end_of_url`.
// - A run of one and the same other character is a word ("...", "====").
// A simplification of Unicode Standard Annex 29, with CJK by character.
template <typename Visit>
void for_each_word(const Characters& characters, std::string_view text, Visit&& visit) {
    const char* p = text.data();
    const char* const text_end = p + text.size();
    while (p != text_end) {
        const char* const begin = p;
        const std::uint32_t c = next_code_point(p);
        Kind kind = characters.kind(c);
        if (kind == Kind::space) {
            continue;
        }
        if (kind == Kind::cjk) {
            visit(Word{begin, p, 1, true, true, false});
            continue;
        }
        std::uint32_t length = 1;
        if (kind == Kind::symbol) {
            const char* next = p;
            while (next != text_end && next_code_point(next) == c) {
                p = next;
                ++length;
            }
            visit(Word{begin, p, length, false, false, true});
            continue;
        }
        constexpr std::uint32_t in_word = 1U << static_cast<unsigned>(Kind::letter) |
                                          1U << static_cast<unsigned>(Kind::number) |
                                          1U << static_cast<unsigned>(Kind::mark);
        std::uint32_t seen = 1U << static_cast<unsigned>(kind);
        while (p != text_end) {
            const char* next = p;
            const std::uint32_t following = next_code_point(next);
            const Kind following_kind = characters.kind(following);
            const std::uint32_t bit = 1U << static_cast<unsigned>(following_kind);
            if ((bit & in_word) != 0) {
                kind = following_kind;
                seen |= bit;
                p = next;
                ++length;
                continue;
            }
            const bool joins_letters = following == '\'' || following == 0x2019;
            const bool joins_numbers = following == '.' || following == ',';
            const Kind wanted = joins_letters ? Kind::letter : Kind::number;
            if ((!joins_letters && !joins_numbers) || kind != wanted || next == text_end) {
                break;
            }
            if (characters.kind(next_code_point(next)) != wanted) {
                break;
            }
            p = next;
            length += 2;
        }
        if (begins_url(begin, p, text_end)) {
            const char* const url_end = end_of_url(p, text_end);
            length += static_cast<std::uint32_t>(url_end - p);
            p = url_end;
        }
        const bool has_letter = (seen >> static_cast<unsigned>(Kind::letter) & 1) != 0;
        const bool has_number = (seen >> static_cast<unsigned>(Kind::number) & 1) != 0;
        visit(Word{begin, p, length, false, has_letter, !has_letter && !has_number});
    }
}

}  // namespace qwen_data
