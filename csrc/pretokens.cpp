#include "pretokens.h"

namespace qwen_data {

namespace {

bool is_line_end(char c) { return c == '\r' || c == '\n'; }

// The end of what follows an apostrophe in a contraction, nullptr if it is none. Case does not matter; U+017F is another
// lower-case form of s.
const char* contraction_end(const char* p, const char* end) {
    if (end - p >= 2 && p[0] == '\xC5' && p[1] == '\xBF') {
        return p + 2;
    }
    const auto letter = [end](const char* at) {
        return at != end && is_ascii_letter(*at) ? static_cast<char>(*at | 0x20) : '\0';
    };
    const char first = letter(p);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return p + 1;
    }
    const char second = first == '\0' ? '\0' : letter(p + 1);
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) {
        return p + 2;
    }
    return nullptr;
}

}  // namespace

#if defined(__SSE2__)
// `bits << 1` are the bytes behind those of `bits`, and bits + seeds carries past the runs of bits that begin with a seed.
PretokenPattern::Starts PretokenPattern::starts_in_block(const char* p, const char* end) {
    const AsciiBlock is(p);
    const std::uint64_t symbols = ~(is.letters | is.numbers | is.spaces);
    const std::uint64_t inner_spaces = is.spaces & ~is.line_ends;

    // A run of symbols begins with the blank before it; a symbol or white space, but no line end, goes with the letters
    // behind it, if it is not taken by what is before it.
    const std::uint64_t first_symbols = symbols & ~((symbols | is.blanks) << 1);
    const std::uint64_t first_letters = is.letters & ~((is.letters | first_symbols | inner_spaces) << 1);

    // Line ends behind symbols belong to them. Other white space is one up to its last line end, one from there to the last
    // space before something else, which is one or the beginning of one.
    const std::uint64_t taken = is.line_ends & ~(is.line_ends + (is.line_ends & symbols << 1));
    const std::uint64_t free_spaces = is.spaces & ~taken;
    const std::uint64_t first_spaces = free_spaces & ~(free_spaces << 1);
    const std::uint64_t last_spaces = inner_spaces & ~(is.spaces >> 1);
    const std::uint64_t behind_line_ends = inner_spaces & (is.line_ends & ~taken) << 1;
    const std::uint64_t later_line_ends = (inner_spaces + behind_line_ends) & ~inner_spaces & is.line_ends;

    std::uint64_t starts = 1 | is.numbers | is.numbers << 1 | first_symbols | first_letters | first_spaces | last_spaces |
                           behind_line_ends;
    for (std::uint64_t left = is.apostrophes & first_symbols; left != 0; left &= left - 1) {
        const char* const stop = contraction_end(p + __builtin_ctzll(left) + 1, end);
        if (stop != nullptr && stop - p < AsciiBlock::kBytes) {
            starts |= std::uint64_t{1} << (stop - p);
        }
    }

    // White space before what is not told is known only to begin.
    const std::uint64_t untold = is.wide | later_line_ends;
    const std::uint64_t told = untold == 0 ? ~std::uint64_t{0} : (untold & ~(untold - 1)) - 1;
    const std::uint64_t solid = told & ~is.spaces;
    const int behind_solid = solid == 0 ? 0 : 64 - __builtin_clzll(solid);
    const std::uint64_t known = behind_solid >= 63 ? ~std::uint64_t{0} : (std::uint64_t{2} << behind_solid) - 1;
    return {starts & told & known, untold == 0};
}
#endif

// [^\s\p{L}\p{N}]*[\r\n]*
const char* PretokenPattern::behind_symbols(const char* p, const char* end) const {
    while (p != end) {
        const Ascii here = ascii(*p);
        if (here == Ascii::symbol || here == Ascii::apostrophe) {
            ++p;
            continue;
        }
        if (here != Ascii::none) {
            break;
        }
        const char* next = p;
        if (kind(next_code_point(next)) != PatternKind::other) {
            break;
        }
        p = next;
    }
    while (p != end && is_line_end(*p)) {
        ++p;
    }
    return p;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the last line end of the white space; without one, all of it at the end of the text,
// else all but its last character, which belongs to what follows.
const char* PretokenPattern::white_space_end(const char* begin, const char* end) const {
    const char* behind_line_end = nullptr;
    const char* last = begin;
    const char* p = begin;
    while (p != end) {
        const char* next = behind_blanks(p, end);
        if (next != p) {
            last = next - 1;
            p = next;
            continue;
        }
        if (kind(next_code_point(next)) != PatternKind::space) {
            break;
        }
        if (is_line_end(*p)) {
            behind_line_end = next;
        }
        last = p;
        p = next;
    }
    if (behind_line_end != nullptr) {
        return behind_line_end;
    }
    return p == end || last == begin ? p : last;
}

const char* PretokenPattern::any_end(const char* p, const char* end) const {
    const char* next = p;
    const PatternKind first = kind(next_code_point(next));
    if (*p == '\'') {
        if (const char* const stop = contraction_end(next, end)) {
            return stop;
        }
    }
    if (first == PatternKind::number) {
        return next;
    }
    const char* behind_second = next;
    const PatternKind second = next == end ? PatternKind::space : kind(next_code_point(behind_second));
    if (first == PatternKind::letter || (!is_line_end(*p) && second == PatternKind::letter)) {
        return behind_letters(next, end);
    }
    if (first == PatternKind::other || (*p == ' ' && second == PatternKind::other)) {
        return behind_symbols(next, end);
    }
    return white_space_end(p, end);
}

}  // namespace qwen_data
