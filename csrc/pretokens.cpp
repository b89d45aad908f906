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
