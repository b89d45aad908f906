#include "pretokens.h"

#include "utf8.h"

namespace qwen_data {

namespace {

bool is_line_end(std::uint32_t c) { return c == '\r' || c == '\n'; }

// The text from a place on, read a code point at a time.
class Scanner {
  public:
    Scanner(View<const std::uint8_t> kinds, const char* p, const char* end) : kinds_(kinds), p_(p), end_(end) {}

    const char* place() const { return p_; }
    bool at_end() const { return p_ == end_; }

    std::uint32_t peek() const {
        const char* p = p_;
        return next_code_point(p);
    }
    PatternKind kind() const { return static_cast<PatternKind>(kinds_[peek()]); }
    bool is(PatternKind kind) const { return !at_end() && this->kind() == kind; }
    void advance() { next_code_point(p_); }

    const char* behind_all(PatternKind kind) {
        while (is(kind)) {
            advance();
        }
        return p_;
    }

    // [^\s\p{L}\p{N}]+[\r\n]*
    const char* behind_symbols() {
        behind_all(PatternKind::other);
        while (!at_end() && is_line_end(peek())) {
            advance();
        }
        return p_;
    }

  private:
    View<const std::uint8_t> kinds_;
    const char* p_;
    const char* end_;
};

// The end of what follows an apostrophe in a contraction, nullptr if it is none. Case does not matter; U+017F is another
// lower-case form of s.
const char* contraction_end(Scanner scanner) {
    const auto lower = [](const Scanner& at) {
        const std::uint32_t c = at.at_end() ? 0 : at.peek();
        return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c == 0x17F ? std::uint32_t{'s'} : c;
    };
    const std::uint32_t first = lower(scanner);
    if (first == 0) {
        return nullptr;
    }
    scanner.advance();
    if (first == 's' || first == 't' || first == 'm' || first == 'd') {
        return scanner.place();
    }
    const std::uint32_t second = lower(scanner);
    if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) {
        scanner.advance();
        return scanner.place();
    }
    return nullptr;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the last line end of the white space; without one, all of it at the end of the text,
// else all but its last character, which belongs to what follows.
const char* white_space_end(Scanner scanner) {
    const char* behind_line_end = nullptr;
    const char* last = scanner.place();
    const char* const begin = last;
    while (scanner.is(PatternKind::space)) {
        last = scanner.place();
        const bool ends_line = is_line_end(scanner.peek());
        scanner.advance();
        if (ends_line) {
            behind_line_end = scanner.place();
        }
    }
    if (behind_line_end != nullptr) {
        return behind_line_end;
    }
    return scanner.at_end() || last == begin ? scanner.place() : last;
}

}  // namespace

const char* pretoken_end(View<const std::uint8_t> kinds, const char* p, const char* end) {
    Scanner scanner(kinds, p, end);
    const Scanner first = scanner;
    const std::uint32_t c = scanner.peek();
    const PatternKind kind = scanner.kind();
    scanner.advance();
    if (c == '\'') {
        if (const char* const stop = contraction_end(scanner)) {
            return stop;
        }
    }
    if (kind == PatternKind::number) {
        return scanner.place();
    }
    if (kind == PatternKind::letter || (!is_line_end(c) && scanner.is(PatternKind::letter))) {
        return scanner.behind_all(PatternKind::letter);
    }
    if (kind == PatternKind::other || (c == ' ' && scanner.is(PatternKind::other))) {
        return scanner.behind_symbols();
    }
    return white_space_end(first);
}

}  // namespace qwen_data
