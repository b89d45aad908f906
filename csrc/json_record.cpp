#include "json_record.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "byte_runs.h"
#include "utf8.h"
#include "word_key.h"

namespace qwen_data {

namespace {

constexpr int kDeepest = 32;
// Numbers of so many digits are whole numbers of 64 bits, and so many characters no infinite ones.
constexpr std::ptrdiff_t kWholeDigits = 18;
constexpr std::ptrdiff_t kNumberBytes = 24;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

const char* skip_space(const char* p, const char* end) {
    while (p != end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) {
        ++p;
    }
    return p;
}

// Four hexadecimal digits at `p`, or -1.
std::int32_t hexadecimal(const char* p, const char* end) {
    if (end - p < 4) {
        return -1;
    }
    std::int32_t value = 0;
    for (const char* at = p; at != p + 4; ++at) {
        const char lower = static_cast<char>(*at | 0x20);
        const int digit = is_digit(*at) ? *at - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
        if (digit < 0) {
            return -1;
        }
        value = value << 4 | digit;
    }
    return value;
}

char* put_code_point(std::uint32_t c, char* out) {
    const auto put = [&](std::uint32_t byte) { *out++ = static_cast<char>(byte); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0 | c >> 6);
        put(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        put(0xE0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    } else {
        put(0xF0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3F));
        put(0x80 | (c >> 6 & 0x3F));
        put(0x80 | (c & 0x3F));
    }
    return out;
}

// Resolves the escape whose letter is at `p`; returns the place behind it, nullptr if it is none or a lone surrogate.
const char* escape(const char* p, const char* end, char*& out) {
    if (p == end) {
        return nullptr;
    }
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (*p != 'u') {
        const std::size_t which = letters.find(*p);
        if (which == std::string_view::npos) {
            return nullptr;
        }
        *out++ = meanings[which];
        return p + 1;
    }
    std::int32_t code = hexadecimal(p + 1, end);
    p += 5;
    if (code < 0 || (code >= 0xDC00 && code < 0xE000)) {
        return nullptr;
    }
    if (code >= 0xD800 && code < 0xDC00) {
        if (end - p < 6 || p[0] != '\\' || p[1] != 'u') {
            return nullptr;
        }
        const std::int32_t low = hexadecimal(p + 2, end);
        if (low < 0xDC00 || low >= 0xE000) {
            return nullptr;
        }
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        p += 6;
    }
    out = put_code_point(static_cast<std::uint32_t>(code), out);
    return p;
}

// Where bytes of a string are themselves: all but quotes, backslashes and control characters.
const char* copy_plain(const char* p, const char* end, char*& out) {
#if defined(__SSE2__)
    while (end - p >= 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        const __m128i special = _mm_or_si128(_mm_or_si128(equal(bytes, '"'), equal(bytes, '\\')), below(bytes, 0x20));
        const auto places = static_cast<unsigned>(_mm_movemask_epi8(special));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
        if (places != 0) {
            const int plain = __builtin_ctz(places);
            out += plain;
            return p + plain;
        }
        p += 16;
        out += 16;
    }
#endif
    while (p != end && *p != '"' && *p != '\\' && static_cast<unsigned char>(*p) >= 0x20) {
        *out++ = *p++;
    }
    return p;
}

// Reads the string whose first byte behind the quote is at `p` into `out`, which has room for as many bytes as are left
// and 16 more. Returns the place behind the closing quote, nullptr if the string is not well-formed.
const char* read_string(const char* p, const char* end, char*& out) {
    for (;;) {
        p = copy_plain(p, end, out);
        if (p == end) {
            return nullptr;
        }
        if (*p == '"') {
            return p + 1;
        }
        if (*p != '\\') {
            return nullptr;
        }
        p = escape(p + 1, end, out);
        if (p == nullptr) {
            return nullptr;
        }
    }
}

const char* skip_digits(const char* p, const char* end) {
    while (p != end && is_digit(*p)) {
        ++p;
    }
    return p;
}

const char* skip_number(const char* p, const char* end) {
    const char* const begin = p;
    p += *p == '-';
    const char* const whole = p;
    p = skip_digits(p, end);
    if (p == whole || (*whole == '0' && p - whole > 1) || p - whole > kWholeDigits) {
        return nullptr;
    }
    if (p != end && *p == '.') {
        const char* const fraction = ++p;
        p = skip_digits(p, end);
        if (p == fraction) {
            return nullptr;
        }
    }
    if (p != end && (*p == 'e' || *p == 'E')) {
        ++p;
        p += p != end && (*p == '+' || *p == '-');
        const char* const exponent = p;
        p = skip_digits(p, end);
        if (p == exponent || p - exponent > 2) {
            return nullptr;
        }
    }
    return p - begin > kNumberBytes ? nullptr : p;
}

// Passes over values that are not wanted; their strings go to a place that nobody reads.
class Skipper {
  public:
    Skipper(const char* end, char* waste) : end_(end), waste_(waste) {}

    // The place behind the value at `p`, nullptr if it is not plain.
    const char* value(const char* p, int depth) const {
        if (p == end_ || depth > kDeepest) {
            return nullptr;
        }
        switch (*p) {
            case '"':
                return string(p);
            case '{':
                return list(p + 1, depth, '}');
            case '[':
                return list(p + 1, depth, ']');
            case 't':
                return word(p, "true");
            case 'f':
                return word(p, "false");
            case 'n':
                return word(p, "null");
            default:
                return skip_number(p, end_);
        }
    }

    const char* string(const char* p) const {
        char* out = waste_;
        return read_string(p + 1, end_, out);
    }

  private:
    const char* word(const char* p, std::string_view expected) const {
        const auto left = static_cast<std::size_t>(end_ - p);
        const bool is_it = left >= expected.size() && std::memcmp(p, expected.data(), expected.size()) == 0;
        return is_it ? p + expected.size() : nullptr;
    }

    // What stands between brackets, of an object with keys.
    const char* list(const char* p, int depth, char close) const {
        p = skip_space(p, end_);
        if (p != end_ && *p == close) {
            return p + 1;
        }
        for (;;) {
            if (close == '}') {
                p = skip_space(p, end_);
                if (p == end_ || *p != '"' || (p = string(p)) == nullptr) {
                    return nullptr;
                }
                p = skip_space(p, end_);
                if (p == end_ || *p != ':') {
                    return nullptr;
                }
                ++p;
            }
            p = value(skip_space(p, end_), depth + 1);
            if (p == nullptr) {
                return nullptr;
            }
            p = skip_space(p, end_);
            if (p == end_) {
                return nullptr;
            }
            if (*p == close) {
                return p + 1;
            }
            if (*p != ',') {
                return nullptr;
            }
            ++p;
        }
    }

    const char* end_;
    char* waste_;
};

}  // namespace

std::string_view JsonRecord::text(std::string_view line, std::vector<char>& buffer) const {
    const std::string_view none;
    const char* p = line.data();
    const char* const end = p + line.size();
    if (first_invalid_utf8(p, line.size()) != line.size()) {
        return none;
    }
    // One half for the text, the other for strings that nobody wants; both with room for whole vectors.
    const std::size_t half = line.size() + kPadding;
    if (buffer.size() < 2 * half) {
        buffer.resize(4 * half);
    }
    char* const begin = buffer.data();
    const Skipper skipper(end, begin + half);
    std::string_view found;
    p = skip_space(p, end);
    if (p == end || *p != '{') {
        return none;
    }
    do {
        p = skip_space(p + 1, end);
        if (p == end || *p != '"') {
            return none;
        }
        const char* const name = p + 1;
        p = skipper.string(p);
        if (p == nullptr) {
            return none;
        }
        const std::string_view key(name, static_cast<std::size_t>(p - 1 - name));
        p = skip_space(p, end);
        if (p == end || *p != ':' || key.find('\\') != std::string_view::npos) {
            return none;
        }
        p = skip_space(p + 1, end);
        if (key == key_) {
            char* out = begin;
            if (p == end || *p != '"' || found.data() != nullptr || (p = read_string(p + 1, end, out)) == nullptr) {
                return none;
            }
            found = {begin, static_cast<std::size_t>(out - begin)};
        } else if ((p = skipper.value(p, 1)) == nullptr) {
            return none;
        }
        p = skip_space(p, end);
    } while (p != end && *p == ',');
    if (p == end || *p != '}' || skip_space(p + 1, end) != end) {
        return none;
    }
    return found;
}

}  // namespace qwen_data
