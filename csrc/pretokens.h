// Pre-tokens of Qwen's tokenizer: the pieces of a text that byte pairs are joined in, never across.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ascii_block.h"
#include "byte_runs.h"
#include "pattern_kinds.h"
#include "utf8.h"

namespace qwen_data {

// Finds where pre-tokens end, by the pattern `data_tools.tokenizer.qwen.PATTERN`, its alternatives tried in order:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
class PretokenPattern {
  public:
    PretokenPattern() : kinds_(pattern_kinds()) {}

    // Where the pre-token that begins at `p` ends; p != end, [p, end) is valid UTF-8. Time grows with the pre-token, and
    // the white space behind it.
    const char* end_of(const char* p, const char* end) const {
        const Ascii first = ascii(*p);
        const char* const next = p + 1;
        if (first == Ascii::letter) {
            return behind_letters(next, end);
        }
        if (first == Ascii::number) {
            return next;
        }
        if (next != end && (first == Ascii::blank || first == Ascii::symbol)) {
            const Ascii second = ascii(*next);
            if (second == Ascii::letter) {
                return behind_letters(next + 1, end);
            }
            if (second == Ascii::symbol || second == Ascii::apostrophe) {
                return behind_symbols(next + 1, end);
            }
            if (first == Ascii::symbol && second != Ascii::none) {
                return behind_symbols(next, end);
            }
        }
        return any_end(p, end);
    }

#if defined(__SSE2__)
    // Where pre-tokens begin in the AsciiBlock::kBytes bytes at `p`, at which one does, a bit for each. They are found up to
    // the first character that is not told from its bits alone; `is_whole` if there is none. What begins at the last bit
    // may end anywhere.
    struct Starts {
        std::uint64_t bits;
        bool is_whole;
    };
    static Starts starts_in_block(const char* p, const char* end);
#endif

  private:
    // What the first 128 code points are to the pattern; `none` is not one of them.
    enum class Ascii : std::uint8_t { none, letter, number, blank, space, apostrophe, symbol };

    static constexpr std::array<Ascii, 256> make_ascii() {
        std::array<Ascii, 256> kinds{};
        for (std::size_t c = 0; c < 128; ++c) {
            const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
            kinds[c] = is_letter               ? Ascii::letter
                       : c >= '0' && c <= '9'  ? Ascii::number
                       : c == ' '              ? Ascii::blank
                       : c >= '\t' && c <= '\r' ? Ascii::space
                       : c == '\''             ? Ascii::apostrophe
                                               : Ascii::symbol;
        }
        return kinds;
    }

    static Ascii ascii(char c) {
        static constexpr std::array<Ascii, 256> kKinds = make_ascii();
        return kKinds[static_cast<unsigned char>(c)];
    }

    PatternKind kind(std::uint32_t c) const { return kinds_[c]; }

    // \p{L}*
    const char* behind_letters(const char* p, const char* end) const {
        for (;;) {
            p = behind_ascii_letters(p, end);
            if (p == end || static_cast<unsigned char>(*p) < 0x80) {
                return p;
            }
            while (p != end && static_cast<unsigned char>(*p) >= 0x80) {
                const char* next = p;
                if (kind(next_code_point(next)) != PatternKind::letter) {
                    return p;
                }
                p = next;
            }
        }
    }

    const char* behind_symbols(const char* p, const char* end) const;
    const char* any_end(const char* p, const char* end) const;
    const char* white_space_end(const char* begin, const char* end) const;

    const PatternKind* kinds_;
};

// Calls visit(pre-token) for each pre-token of `text` (valid UTF-8), in order; together they are the text.
template <typename Visit>
void for_each_pretoken(const PretokenPattern& pattern, std::string_view text, Visit&& visit) {
    const char* p = text.data();
    const char* const end = p + text.size();
    const auto visit_up_to = [&](const char* stop) {
        visit(std::string_view(p, static_cast<std::size_t>(stop - p)));
        p = stop;
    };
    while (p != end) {
#if defined(__SSE2__)
        // Where one ends is asked of the bits of many, because branches on single bytes would be gambles. Text that is not
        // ASCII shows in its first two bytes, of which one may be a space.
        while (end - p >= AsciiBlock::kBytes && static_cast<unsigned char>(p[0] | p[1]) < 0x80) {
            const char* const block = p;
            const PretokenPattern::Starts starts = pattern.starts_in_block(p, end);
            for (std::uint64_t left = starts.bits & ~std::uint64_t{1}; left != 0; left &= left - 1) {
                visit_up_to(block + __builtin_ctzll(left));
            }
            if (!starts.is_whole || p == block) {
                break;
            }
        }
#endif
        visit_up_to(pattern.end_of(p, end));
    }
}

}  // namespace qwen_data
