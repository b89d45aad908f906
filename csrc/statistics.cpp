#include "statistics.h"

#include <algorithm>
#include <stdexcept>

#include "lines.h"
#include "text_hash.h"
#include "utf8.h"
#include "words.h"

namespace qwen_data {

void KeyCounter::reset(std::size_t keys) {
    std::size_t capacity = 16;
    while (capacity < 2 * keys) {
        capacity *= 2;
    }
    if (keys_.size() < capacity) {
        keys_.resize(capacity);
        counts_.resize(capacity);
    }
    std::fill_n(counts_.begin(), capacity, 0U);
    mask_ = capacity - 1;
}

std::size_t KeyCounter::add(std::uint64_t key) {
    std::size_t slot = key & mask_;
    while (counts_[slot] != 0 && keys_[slot] != key) {
        slot = (slot + 1) & mask_;
    }
    keys_[slot] = key;
    ++counts_[slot];
    return slot;
}

StatisticsOptions::StatisticsOptions(const std::vector<std::string>& words, std::uint32_t short_length)
    : short_line_length(short_length) {
    if (words.size() > 64) {
        throw std::invalid_argument(std::to_string(words.size()) + " stop words; at most 64 can be counted");
    }
    for (const std::string& word : words) {
        stop_words.push_back(hash_bytes(word.data(), word.size()));
        stop_words_by_byte[stop_words.back() & 0xFF] = true;
    }
}

namespace {

constexpr std::uint32_t kEllipsis = 0x2026;
constexpr std::uint32_t kBullet = 0x2022;
// A CJK character says about as much as three Latin letters; line lengths are measured in those.
constexpr std::size_t kCjkWidth = 3;

using Scratch = StatisticsScratch;

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

void count_line(const Characters& characters, std::string_view line, std::int64_t* out) {
    ++out[kLines];
    const std::string_view stripped = strip(characters, line);
    if (stripped.empty()) {
        return;
    }
    const char* p = stripped.data();
    const std::uint32_t first = next_code_point(p);
    out[kBulletLines] += first == kBullet || first == '-';
    out[kEllipsisLines] += ends_with(stripped, "...") || last_code_point(stripped) == kEllipsis;
}

// Words as str.split() has them, and those with a letter.
class SpacedWords {
  public:
    void add(Kind kind, std::int64_t* out) {
        const bool begins = is_between_ && kind != Kind::space;
        is_between_ = kind == Kind::space;
        has_letter_ = has_letter_ && !begins && !is_between_;
        out[kSpacedWords] += begins;
        if (!has_letter_ && (kind == Kind::letter || kind == Kind::cjk)) {
            has_letter_ = true;
            ++out[kSpacedLetterWords];
        }
    }

  private:
    bool is_between_ = true;
    bool has_letter_ = false;
};

// Lines as str.splitlines() has them, words between white space, hash signs, ellipses, characters.
void count_lines(const Characters& characters, std::string_view text, std::int64_t* out) {
    const char* p = text.data();
    const char* const end = p + text.size();
    const char* line = p;
    std::size_t dots = 0;
    SpacedWords words;
    while (p != end) {
        const char* at = p;
        const std::uint32_t c = next_code_point(p);
        ++out[kCharacters];
        words.add(characters.kind(c), out);
        dots = c == '.' ? dots + 1 : 0;
        if (c == '#') {
            ++out[kHashes];
        } else if (dots == 3) {
            ++out[kEllipses];
            dots = 0;
        } else if (c == kEllipsis) {
            ++out[kEllipses];
        } else if (is_line_break(c)) {
            out[kNewlines] += c == '\n';
            count_line(characters, {line, static_cast<std::size_t>(at - line)}, out);
            if (c == '\r' && p != end && *p == '\n') {
                ++p;
                ++out[kCharacters];
                ++out[kNewlines];
            }
            line = p;
        }
    }
    if (line != end) {
        count_line(characters, {line, static_cast<std::size_t>(end - line)}, out);
    }
}

void count_paragraphs(const Characters& characters, std::string_view text, Scratch& scratch, std::int64_t* out) {
    const std::string_view body = strip(characters, text);
    scratch.counter.reset(static_cast<std::size_t>(out[kNewlines]) / 2 + 2);
    std::size_t start = 0;
    while (true) {
        std::size_t end = body.find("\n\n", start);
        const bool is_last = end == std::string_view::npos;
        end = is_last ? body.size() : end;
        const std::string_view paragraph = body.substr(start, end - start);
        ++out[kParagraphs];
        if (scratch.counter.count(scratch.counter.add(hash_bytes(paragraph.data(), paragraph.size()))) > 1) {
            ++out[kDuplicateParagraphs];
            out[kDuplicateParagraphCharacters] +=
                static_cast<std::int64_t>(count_code_points(paragraph.data(), paragraph.data() + paragraph.size()));
        }
        if (is_last) {
            return;
        }
        start = body.find_first_not_of('\n', end);
    }
}

// True if a line that ends in `last`, before it `previous`, ends a sentence; a closing quotation mark or bracket may follow
// the full stop of Chinese and Japanese.
bool ends_sentence(const Characters& characters, std::string_view line) {
    const std::uint32_t last = last_code_point(line);
    if (characters.is_terminal(last)) {
        return true;
    }
    const bool closes = last == 0x201D || last == 0x2019 || last == 0x300D || last == 0x300F || last == 0xFF09 ||
                        last == 0x300B || last == 0x3011;
    const std::size_t size = 3;  // Bytes of every one of these.
    if (!closes || line.size() <= size) {
        return false;
    }
    const std::uint32_t previous = last_code_point(line.substr(0, line.size() - size));
    return previous == 0x3002 || previous == 0xFF01 || previous == 0xFF1F;
}

void count_full_line(const Characters& characters, std::string_view line, const StatisticsOptions& options,
                     std::int64_t* out) {
    ++out[kFullLines];
    out[kPunctuatedLines] += ends_sentence(characters, line);
    // A line of more bytes than that is long whatever its characters.
    if (line.size() > 4 * static_cast<std::size_t>(options.short_line_length)) {
        return;
    }
    std::size_t width = 0;
    const char* p = line.data();
    const char* const end = p + line.size();
    while (p != end) {
        width += characters.kind(next_code_point(p)) == Kind::cjk ? kCjkWidth : 1;
    }
    out[kShortLines] += width <= options.short_line_length;
}

// Pieces between runs of newlines (Gopher), and of those the ones that are not blank (FineWeb).
void count_segments(const Characters& characters, std::string_view text, const StatisticsOptions& options,
                    Scratch& scratch, std::int64_t* out) {
    const bool empty_first = text.empty() || text.front() == '\n';
    const bool empty_last = !text.empty() && text.back() == '\n';
    out[kSegments] = static_cast<std::int64_t>(empty_first) + static_cast<std::int64_t>(empty_last);
    out[kDuplicateSegments] = empty_first && empty_last;
    scratch.counter.reset(static_cast<std::size_t>(out[kNewlines]) + 1);
    std::size_t start = text.find_first_not_of('\n');
    while (start != std::string_view::npos) {
        const std::size_t end = std::min(text.find('\n', start), text.size());
        const std::string_view line = text.substr(start, end - start);
        const bool is_full = !strip(characters, line).empty();
        ++out[kSegments];
        if (scratch.counter.count(scratch.counter.add(hash_bytes(line.data(), line.size()))) > 1) {
            const auto length =
                static_cast<std::int64_t>(count_code_points(line.data(), line.data() + line.size()));
            ++out[kDuplicateSegments];
            out[kDuplicateSegmentCharacters] += length;
            out[kDuplicateFullLineCharacters] += is_full ? length : 0;
        }
        if (is_full) {
            count_full_line(characters, line, options, out);
        }
        start = text.find_first_not_of('\n', end);
    }
}

void count_words(const Characters& characters, std::string_view text, const StatisticsOptions& options,
                 Scratch& scratch, std::int64_t* out) {
    scratch.words.clear();
    scratch.ends.assign(1, 0);
    scratch.joined.assign(1, 0);
    std::uint64_t stop_words = 0;
    bool after_cjk = true;
    for_each_word(characters, text, [&](const Word& word) {
        ++out[kWords];
        out[kPlainWords] += !word.is_symbol;
        out[kPlainWordCharacters] += word.is_symbol ? 0 : word.num_code_points;
        out[kCjkWords] += word.is_cjk;
        out[kLetterWords] += word.has_letter;
        const std::uint64_t hash = hash_bytes(word.begin, static_cast<std::size_t>(word.end - word.begin));
        if (options.stop_words_by_byte[hash & 0xFF]) {
            for (std::size_t i = 0; i < options.stop_words.size(); ++i) {
                stop_words |= static_cast<std::uint64_t>(options.stop_words[i] == hash) << i;
            }
        }
        if (scratch.words.size() < kMaxNgramWords) {
            scratch.words.push_back(hash);
            const bool has_space = !after_cjk && !word.is_cjk;
            scratch.joined.push_back(scratch.joined.back() + has_space + word.num_code_points);
            scratch.ends.push_back(scratch.ends.back() + word.num_code_points);
            after_cjk = word.is_cjk;
        }
    });
    out[kStopWords] = __builtin_popcountll(stop_words);
}

// Code points of words position .. position + n - 1, joined by spaces (CJK without).
std::uint64_t joined_length(const Scratch& scratch, std::size_t position, std::size_t n) {
    const std::uint64_t first = scratch.ends[position + 1] - scratch.ends[position];
    return scratch.joined[position + n] - scratch.joined[position + 1] + first;
}

// Keeps in scratch.grams the n-grams that occur more than once; on entry they are all that might.
// Returns the characters taken by the most frequent one, the earliest of equals.
std::uint64_t keep_repeated(Scratch& scratch, std::size_t n) {
    auto& grams = scratch.grams;
    scratch.counter.reset(grams.size());
    scratch.slots.clear();
    for (const auto& gram : grams) {
        scratch.slots.push_back(scratch.counter.add(gram.hash));
    }
    std::uint32_t top_count = 1;
    std::size_t top_position = 0;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < grams.size(); ++i) {
        const std::uint32_t count = scratch.counter.count(scratch.slots[i]);
        if (count > top_count) {
            top_count = count;
            top_position = grams[i].position;
        }
        if (count > 1) {
            grams[kept++] = grams[i];
        }
    }
    grams.resize(kept);
    return joined_length(scratch, top_position, n) * top_count;
}

std::uint64_t extend_hash(std::uint64_t hash, std::uint64_t word) {
    return fold_multiply(hash + 0x9E3779B97F4A7C15ULL, word ^ 0x6A09E667F3BCC909ULL);
}

// Repeated (n-1)-grams in scratch.grams become candidates for repeated n-grams: an n-gram can only occur twice if the
// (n-1)-grams at its two ends do.
void lengthen(Scratch& scratch, std::size_t n) {
    auto& grams = scratch.grams;
    const std::size_t num_words = scratch.words.size();
    std::size_t kept = 0;
    for (std::size_t i = 0; i < grams.size(); ++i) {
        const std::size_t end = grams[i].position + n;
        const bool continues = i + 1 < grams.size() && grams[i + 1].position == grams[i].position + 1;
        if (continues && end <= num_words) {
            grams[kept++] = {grams[i].position, extend_hash(grams[i].hash, scratch.words[end - 1])};
        }
    }
    grams.resize(kept);
}

// Characters in n-grams seen before, going on behind each of them, so that none is counted twice.
std::uint64_t duplicate_characters(Scratch& scratch, std::size_t n) {
    scratch.counter.reset(scratch.grams.size());
    std::uint64_t characters = 0;
    std::size_t next = 0;
    for (const auto& gram : scratch.grams) {
        if (gram.position < next) {
            continue;
        }
        if (scratch.counter.count(scratch.counter.add(gram.hash)) > 1) {
            characters += scratch.ends[gram.position + n] - scratch.ends[gram.position];
            next = gram.position + n;
        }
    }
    return characters;
}

void count_ngrams(Scratch& scratch, std::int64_t* out) {
    const std::size_t num_words = scratch.words.size();
    scratch.grams.clear();
    for (std::size_t i = 0; i + 1 < num_words; ++i) {
        scratch.grams.push_back({static_cast<std::uint32_t>(i), extend_hash(scratch.words[i], scratch.words[i + 1])});
    }
    for (std::size_t n = 2; n <= 10 && n <= num_words; ++n) {
        if (n > 2) {
            lengthen(scratch, n);
        }
        const std::uint64_t top = keep_repeated(scratch, n);
        if (n <= 4) {
            out[kTop2gram + n - 2] = static_cast<std::int64_t>(top);
        } else {
            out[kDuplicate5grams + n - 5] = static_cast<std::int64_t>(duplicate_characters(scratch, n));
        }
    }
}

}  // namespace

void compute_statistics(const Characters& characters, std::string_view text, const StatisticsOptions& options,
                        StatisticsScratch& scratch, std::int64_t* out) {
    std::fill_n(out, kNumStatistics, 0);
    count_lines(characters, text, out);
    count_paragraphs(characters, text, scratch, out);
    count_segments(characters, text, options, scratch, out);
    count_words(characters, text, options, scratch, out);
    count_ngrams(scratch, out);
}

}  // namespace qwen_data
