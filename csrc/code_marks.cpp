#include "code_marks.h"

#include <algorithm>

#include "lines.h"
#include "text_hash.h"
#include "utf8.h"

namespace qwen_data {

WordSet::WordSet(const std::vector<std::string>& words) {
    for (const std::string& word : words) {
        hashes_.push_back(hash_bytes(word.data(), word.size()));
        may_hold_.set(hashes_.back() % may_hold_.size());
    }
    std::sort(hashes_.begin(), hashes_.end());
}

bool WordSet::holds(std::uint64_t hash) const {
    return may_hold_.test(hash % may_hold_.size()) && std::binary_search(hashes_.begin(), hashes_.end(), hash);
}

namespace {

constexpr bool is_digit(std::uint32_t c) { return c >= '0' && c <= '9'; }
constexpr bool is_lower(std::uint32_t c) { return c >= 'a' && c <= 'z'; }
constexpr bool is_upper(std::uint32_t c) { return c >= 'A' && c <= 'Z'; }

void count_symbol(std::uint32_t c, std::int64_t* out) {
    switch (c) {
        case '{':
        case '}':
            ++out[kMarkBraces];
            break;
        case '(':
        case ')':
            ++out[kMarkParentheses];
            break;
        case '[':
        case ']':
            ++out[kMarkBrackets];
            break;
        case '=':
            ++out[kMarkEquals];
            break;
        case ';':
            ++out[kMarkSemicolons];
            break;
        case '<':
        case '>':
            ++out[kMarkAngles];
            break;
        case '&':
        case '|':
        case '\\':
        case '$':
        case '@':
        case '%':
        case '^':
        case '~':
        case '+':
        case '*':
        case '/':
        case '#':
            ++out[kMarkOperators];
            break;
        case '"':
        case '\'':
        case '`':
            ++out[kMarkQuotes];
            break;
        default:
            break;
    }
}

// One name or word: letters, numbers, marks and underscores.
struct Name {
    std::string_view text;
    bool is_plain = true;        // Letters only.
    bool is_joined = false;      // An underscore or a capital after a small letter in it.
    bool begins_upper = false;
};

Name read_name(const Characters& characters, const char*& p, const char* end) {
    const char* const begin = p;
    Name name;
    std::uint32_t previous = 0;
    while (p != end) {
        const char* next = p;
        const std::uint32_t c = next_code_point(next);
        const Kind kind = characters.kind(c);
        if (kind != Kind::letter && kind != Kind::number && kind != Kind::mark) {
            break;
        }
        name.begins_upper |= p == begin && is_upper(c);
        name.is_plain &= kind == Kind::letter || (kind == Kind::mark && c != '_');
        name.is_joined |= (c == '_' && p != begin) || (is_lower(previous) && is_upper(c));
        previous = c;
        p = next;
    }
    name.text = {begin, static_cast<std::size_t>(p - begin)};
    return name;
}

// True if a name is followed by .NAME, :: or ->
bool has_member(const char* p, const char* end) {
    if (end - p < 2) {
        return false;
    }
    const auto next = static_cast<unsigned char>(p[1]);
    return (*p == '.' && (is_lower(next) || is_upper(next) || next == '_')) || (*p == ':' && next == ':') ||
           (*p == '-' && next == '>');
}

void count_line(const Characters& characters, std::string_view line, const CodeMarkWords& words, std::int64_t* out) {
    const char* p = line.data();
    const char* const end = p + line.size();
    const char* after_word = nullptr;  // Behind the word before and the one space that follows it.
    while (p != end) {
        const char* const at = p;
        const std::uint32_t c = next_code_point(p);
        const Kind kind = characters.kind(c);
        if (kind == Kind::space) {
            continue;
        }
        if (kind != Kind::letter && kind != Kind::number && kind != Kind::mark) {
            ++out[kMarkCharacters];
            out[kMarkCjk] += kind == Kind::cjk;
            count_symbol(c, out);
            out[kMarkClosingTags] += c == '<' && p != end && *p == '/';
            continue;
        }
        p = at;
        const Name name = read_name(characters, p, end);
        const auto length = static_cast<std::int64_t>(count_code_points(at, p));
        out[kMarkCharacters] += length;
        out[kMarkUnderscores] += std::count(at, p, '_');
        out[kMarkJoinedNames] += name.is_joined;
        const std::uint64_t hash = hash_bytes(name.text.data(), name.text.size());
        out[kMarkKeywords] += words.keywords.holds(hash);
        out[kMarkCalls] += p != end && *p == '(';
        out[kMarkMembers] += has_member(p, end);
        if (!name.is_plain) {
            out[kMarkNumbers] += is_digit(static_cast<unsigned char>(*at));
            continue;
        }
        out[kMarkLetters] += length;
        ++out[kMarkWords];
        out[kMarkFunctionWords] += words.function_words.holds(hash);
        out[kMarkWordPairs] += at == after_word && !name.begins_upper && !name.is_joined;
        after_word = p != end && *p == ' ' && !name.is_joined ? p + 1 : nullptr;
    }
}

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

// Where a line's first name begins: behind signs such as } or @.
std::string_view first_name(std::string_view stripped) {
    std::size_t begin = 0;
    while (begin < stripped.size() && !is_lower(static_cast<unsigned char>(stripped[begin])) &&
           !is_upper(static_cast<unsigned char>(stripped[begin])) &&
           static_cast<unsigned char>(stripped[begin]) < 0x80 && begin < 3) {
        ++begin;
    }
    std::size_t end = begin;
    while (end < stripped.size() && (is_lower(static_cast<unsigned char>(stripped[end])) ||
                                     is_upper(static_cast<unsigned char>(stripped[end])) || stripped[end] == '_')) {
        ++end;
    }
    return stripped.substr(begin, end - begin);
}

constexpr bool may_be_in_key(unsigned char c) {
    return is_lower(c) || is_upper(c) || is_digit(c) || c == '_' || c == '.' || c == '-' || c == '$' || c == '@' ||
           c == '/' || c == '[' || c == ']';
}

// A line that begins with a key and what is behind it: NAME: or "NAME": is a key line, NAME = an assignment.
void count_key(std::string_view stripped, std::int64_t* out) {
    std::string_view rest = starts_with(stripped, "- ") ? stripped.substr(2) : stripped;
    std::size_t end = 0;
    if (!rest.empty() && (rest[0] == '"' || rest[0] == '\'')) {
        end = rest.find(rest[0], 1);
        if (end == std::string_view::npos) {
            return;
        }
        ++end;
    } else {
        while (end < rest.size() && may_be_in_key(static_cast<unsigned char>(rest[end]))) {
            ++end;
        }
    }
    if (end == 0) {
        return;
    }
    rest.remove_prefix(end);
    out[kMarkKeyLines] += rest == ":" || starts_with(rest, ": ") || starts_with(rest, " : ");
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    const bool changes =
        rest.size() > 1 && rest[1] == '=' && std::string_view(":+-*/|&?.").find(rest[0]) != std::string_view::npos;
    const bool sets = (starts_with(rest, "=") && !starts_with(rest, "==")) || starts_with(rest, "<- ");
    out[kMarkAssignments] += changes || sets;
}

void count_ends(const Characters& characters, std::string_view line, std::string_view stripped,
                const CodeMarkWords& words, std::int64_t* out) {
    ++out[kMarkLines];
    out[kMarkIndentedLines] += line[0] == '\t' || (line.size() > 1 && line[0] == ' ' && line[1] == ' ');
    const char* p = stripped.data();
    const std::uint32_t first = next_code_point(p);
    const bool space_follows = p != stripped.data() + stripped.size() && *p == ' ';
    out[kMarkTagLines] += first == '<' && !space_follows;
    out[kMarkBulletLines] += space_follows && (first == '-' || first == '*' || first == '+' || first == 0x2022);
    const std::uint32_t last = last_code_point(stripped);
    out[kMarkCodeEnds] += last < 0x80 && std::string_view(";{}()[]>=\\").find(static_cast<char>(last)) !=
                                             std::string_view::npos;
    out[kMarkListEnds] += last == ',' || last == ':';
    out[kMarkSentenceEnds] += characters.is_terminal(last) || last == 0x201D;
    const std::string_view opener = first_name(stripped);
    out[kMarkOpeners] += words.openers.holds(hash_bytes(opener.data(), opener.size()));
    count_key(stripped, out);
}

// Signs that begin a comment up to the line's end; 0 for none. Only // says so alone: a line that begins with another
// one is a comment if the line above or below begins with the same, as headings do not.
char comment_sign(std::string_view stripped) {
    if (starts_with(stripped, "//")) {
        return '/';
    }
    const char second = stripped.size() == 1 ? ' ' : stripped[1];
    const bool repeats = stripped[0] != '"' && (second == stripped[0] || second == '!');
    const bool is_apart = second == ' ' || second == '\t' || repeats;
    if (is_apart && std::string_view("#;%!\"").find(stripped[0]) != std::string_view::npos) {
        return stripped[0];
    }
    return stripped == "--" || starts_with(stripped, "-- ") ? '-' : '\0';
}

struct Line {
    std::string_view whole;
    std::string_view stripped;
    char comment_sign;
};

std::vector<Line> split_lines(const Characters& characters, std::string_view text) {
    std::vector<Line> lines;
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t end = std::min(text.find('\n', start), text.size());
        const std::string_view line = text.substr(start, end - start);
        const std::string_view stripped = strip(characters, line);
        lines.push_back({line, stripped, stripped.empty() ? '\0' : comment_sign(stripped)});
        start = end + 1;
    }
    return lines;
}

// What a comment of several lines begins and ends with.
struct Block {
    std::string_view begin;
    std::string_view end;
};
constexpr Block kBlocks[] = {
    {"/*", "*/"},           {"<!--", "-->"},          {"#[[", "]]"},    {"#[=", "#]="},
    {"\"\"\"", "\"\"\""}, {"r\"\"\"", "\"\"\""}, {"'''", "'''"},
};
constexpr Block kPod = {"=", "=cut"};

bool ends_below(const std::vector<Line>& lines, std::size_t i, std::string_view end) {
    while (++i < lines.size()) {
        if (lines[i].stripped.find(end) != std::string_view::npos) {
            return true;
        }
    }
    return false;
}

// Says of each line in turn whether it is passed over.
class Skipper {
  public:
    bool is_comment(const std::vector<Line>& lines, std::size_t i) {
        const std::string_view line = lines[i].stripped;
        if (block_ != nullptr) {
            block_ = line.find(block_->end) == std::string_view::npos ? block_ : nullptr;
            return true;
        }
        for (const Block& block : kBlocks) {
            if (!starts_with(line, block.begin)) {
                continue;
            }
            if (line.find(block.end, block.begin.size()) != std::string_view::npos) {
                return true;
            }
            if (ends_below(lines, i, block.end)) {  // What never ends is the end of one that began above the text.
                block_ = &block;
                return true;
            }
            break;
        }
        const bool is_pod = line.size() > 3 && line[0] == '=' && is_lower(static_cast<unsigned char>(line[1]));
        if (is_pod && line != kPod.end) {
            block_ = &kPod;
            return true;
        }
        const char sign = lines[i].comment_sign;
        return sign == '/' || (sign != '\0' && ((i > 0 && lines[i - 1].comment_sign == sign) ||
                                                (i + 1 < lines.size() && lines[i + 1].comment_sign == sign)));
    }

    bool is_fenced(std::string_view stripped) {
        const bool fences = starts_with(stripped, "```") || starts_with(stripped, "~~~");
        in_fence_ ^= fences;
        return fences || in_fence_;
    }

  private:
    const Block* block_ = nullptr;
    bool in_fence_ = false;
};

void count_lines(const Characters& characters, const std::vector<Line>& lines, const CodeMarkWords& words,
                 std::int64_t max_characters, bool with_all, std::int64_t* out) {
    Skipper skipper;
    for (std::size_t i = 0; i < lines.size() && out[kMarkCharacters] < max_characters; ++i) {
        const Line& line = lines[i];
        if (line.stripped.empty()) {
            continue;
        }
        if (!with_all && skipper.is_fenced(line.stripped)) {
            continue;
        }
        if (!with_all && skipper.is_comment(lines, i)) {
            ++out[kMarkCommentLines];
            continue;
        }
        std::int64_t before[kNumCodeMarks];
        std::copy_n(out, kNumCodeMarks, before);
        count_ends(characters, line.whole, line.stripped, words, out);
        count_line(characters, line.stripped, words, out);
        const auto added = [&](CodeMark mark) { return out[mark] - before[mark]; };
        const std::int64_t pairs = added(kMarkWordPairs);
        out[kMarkProseLines] += pairs >= 3 && 2 * pairs >= added(kMarkWords);
        out[kMarkCodeLines] += pairs <= 1 && (added(kMarkCodeEnds) + added(kMarkAssignments) + added(kMarkCalls) +
                                              added(kMarkKeyLines) + added(kMarkJoinedNames) + added(kMarkOpeners)) > 0;
    }
}

}  // namespace

void count_code_marks(const Characters& characters, std::string_view text, const CodeMarkWords& words,
                      std::int64_t max_characters, std::int64_t* out) {
    std::fill_n(out, kNumCodeMarks, 0);
    const std::vector<Line> lines = split_lines(characters, text);
    count_lines(characters, lines, words, max_characters, false, out);
    if (out[kMarkLines] == 0) {
        count_lines(characters, lines, words, max_characters, true, out);
    }
}

}  // namespace qwen_data
