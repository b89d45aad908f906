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

// Calls visit(word) for each word of `text` (valid UTF-8), in order.
//
// - White space separates and belongs to no word.
// - A Chinese character or kana is a word.
// - A run of letters, numbers, marks, underscores and zero-width joiners is a word. An apostrophe (' or U+2019) between
//   two letters and a full stop or comma between two numbers do not end it.
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
        const bool has_letter = (seen >> static_cast<unsigned>(Kind::letter) & 1) != 0;
        const bool has_number = (seen >> static_cast<unsigned>(Kind::number) & 1) != 0;
        visit(Word{begin, p, length, false, has_letter, !has_letter && !has_number});
    }
}

}  // namespace qwen_data
