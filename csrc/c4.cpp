#include "c4.h"

#include <algorithm>

#include "lines.h"
#include "utf8.h"
#include "words.h"

namespace qwen_data {

namespace {

bool is_wide_end(std::uint32_t c) { return c == 0x3002 || c == 0xFF01 || c == 0xFF1F || c == 0xFF61; }

bool is_closing(std::uint32_t c) {
    return c == '"' || c == '\'' || c == ')' || c == ']' || c == 0x201D || c == 0x2019 || c == 0x300D || c == 0x300F ||
           c == 0xFF09 || c == 0x300B;
}

struct LineWords {
    std::size_t count = 0;
    std::size_t longest = 0;
};

// Words between white space; a CJK character is a word of its own.
LineWords measure_words(const Characters& characters, std::string_view line) {
    LineWords words;
    std::size_t length = 0;
    const char* p = line.data();
    const char* const end = p + line.size();
    while (p != end) {
        const Kind kind = characters.kind(next_code_point(p));
        if (kind == Kind::space || kind == Kind::cjk) {
            length = 0;
            words.count += kind == Kind::cjk;
            continue;
        }
        words.count += length == 0;
        words.longest = std::max(words.longest, ++length);
    }
    return words;
}

// Appends `line` without [12], [], [edit] and [citation needed].
void append_without_citations(std::string_view line, std::string& out) {
    out.clear();
    std::size_t at = 0;
    while (true) {
        const std::size_t open = line.find('[', at);
        if (open == std::string_view::npos) {
            out.append(line.substr(at));
            return;
        }
        out.append(line.substr(at, open - at));
        std::size_t close = open + 1;
        while (close < line.size() && line[close] >= '0' && line[close] <= '9') {
            ++close;
        }
        at = open;
        if (close < line.size() && line[close] == ']') {
            at = close + 1;
        }
        for (const std::string_view mark : {std::string_view("[edit]"), std::string_view("[citation needed]")}) {
            if (line.substr(open, mark.size()) == mark) {
                at = open + mark.size();
            }
        }
        if (at == open) {
            out.push_back('[');
            ++at;
        }
    }
}

bool ends_line(std::string_view line) {
    if (line.empty()) {
        return false;
    }
    if (line.size() >= 3 && line.substr(line.size() - 3) == "...") {
        return false;
    }
    const std::uint32_t last = last_code_point(line);
    if (last == '.' || last == '?' || last == '!' || last == '"' || last == '\'' || is_wide_end(last)) {
        return true;
    }
    if (!is_closing(last) || last < 0x80) {
        return false;
    }
    const std::size_t size = 3;  // Bytes of the closing characters beyond ASCII.
    return line.size() > size && is_wide_end(last_code_point(line.substr(0, line.size() - size)));
}

// Sentences end with . ! ? and what closes them, before white space, or with their wide forms anywhere.
std::int64_t count_sentences(const Characters& characters, std::string_view line) {
    std::int64_t sentences = 0;
    bool is_open = false;
    const char* p = line.data();
    const char* const end = p + line.size();
    while (p != end) {
        std::uint32_t c = next_code_point(p);
        if (characters.is_space(c)) {
            continue;
        }
        if (!is_open) {
            ++sentences;
            is_open = true;
        }
        bool is_wide = is_wide_end(c);
        if (!is_wide && c != '.' && c != '!' && c != '?') {
            continue;
        }
        const char* next = p;
        while (next != end) {
            c = next_code_point(next);
            if (!is_closing(c) && !is_wide_end(c) && c != '.' && c != '!' && c != '?') {
                break;
            }
            is_wide |= is_wide_end(c);
            p = next;
        }
        is_open = !is_wide && p != end && !characters.is_space(c);
    }
    return sentences;
}

struct LineBuffers {
    std::string line;
    std::string lower;
};

// False if the page is dropped.
bool clean_line(const Characters& characters, std::string_view raw, const C4Options& options, LineBuffers& buffers,
                C4Page& page) {
    const std::string_view stripped = strip(characters, raw);
    const LineWords words = measure_words(characters, stripped);
    if (words.longest > options.max_word_length) {
        return true;
    }
    append_without_citations(stripped, buffers.line);
    if (!ends_line(buffers.line) || words.count < options.min_words_per_line) {
        return true;
    }
    buffers.lower.resize(buffers.line.size());
    std::transform(buffers.line.begin(), buffers.line.end(), buffers.lower.begin(),
                   [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
    const auto mentions = [&](const std::string& phrase) { return buffers.lower.find(phrase) != std::string::npos; };
    if (!options.page_phrase.empty() && mentions(options.page_phrase)) {
        page.has_page_phrase = true;
        return false;
    }
    if (!options.line_phrases.empty() && mentions(options.line_phrases.front())) {
        return true;
    }
    if (buffers.line.find('{') != std::string::npos) {
        page.has_curly_bracket = true;
        return false;
    }
    if (std::any_of(options.line_phrases.begin(), options.line_phrases.end(), mentions)) {
        return true;
    }
    page.num_sentences += count_sentences(characters, buffers.line);
    if (!page.kept.empty()) {
        page.kept.push_back('\n');
    }
    page.kept.append(buffers.line);
    return true;
}

}  // namespace

void clean_c4(const Characters& characters, std::string_view text, const C4Options& options, C4Page& page) {
    page = C4Page();
    LineBuffers buffers;
    const char* p = text.data();
    const char* const end = p + text.size();
    const char* line = p;
    while (p != end) {
        const char* at = p;
        const std::uint32_t c = next_code_point(p);
        if (!is_line_break(c)) {
            continue;
        }
        if (!clean_line(characters, {line, static_cast<std::size_t>(at - line)}, options, buffers, page)) {
            return;
        }
        if (c == '\r' && p != end && *p == '\n') {
            ++p;
        }
        line = p;
    }
    if (line != end) {
        clean_line(characters, {line, static_cast<std::size_t>(end - line)}, options, buffers, page);
    }
}

}  // namespace qwen_data
