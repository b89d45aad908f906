#include "text_encoder.h"

#include <array>

namespace qwen_data {

namespace {

// Keys of parts of pre-tokens differ from those of pre-tokens: a part that is a token may still be joined otherwise.
constexpr std::uint64_t kIsPart = std::uint64_t{1} << 63;
// Longer words hardly ever come again.
constexpr std::size_t kLongestKept = 128;
// Six bytes are the shortest pre-token that has two characters of three.
constexpr std::size_t kShortestCut = 6;

// Of words that are too long; no other word has it.
constexpr WordKey kNeverKept{0, ~std::uint64_t{0}};

// The first code point of three bytes.
constexpr std::uint32_t kFirstWide = 0x800;

bool begins_wide_character(char c) { return static_cast<unsigned char>(c) >= 0xE0; }

}  // namespace

// Some units, collected before any is encoded, so that the cache has time to bring what it knows of them.
class TextEncoder::Units {
  public:
    Units(const TextEncoder& encoder, std::uint32_t* out, Scratch& scratch)
        : encoder_(encoder), out_(out), scratch_(scratch) {}

    void add(const char* p, std::size_t size, bool is_part, bool is_characters) {
        if (count_ == units_.size()) {
            encode();
        }
        Unit& unit = units_[count_++];
        unit.p = p;
        unit.size = size;
        unit.is_part = is_part;
        unit.is_characters = is_characters;
        if (size <= kKeyBytes) {
            unit.key = word_key(p, size);
            unit.key.high |= is_part ? kIsPart : 0;
            unit.hash = hash_key(unit.key);
        } else if (size <= kLongestKept) {
            unit.hash = hash_bytes(p, size) ^ (is_part ? kIsPart : 0);
            unit.key = long_word_key(unit.hash, size);
        } else {
            unit.hash = 0;
            unit.key = kNeverKept;
        }
        scratch_.words.expect(unit.hash);
    }

    // Encodes what there is; returns the end of what was written so far.
    std::uint32_t* encode() {
        WordCache& words = scratch_.words;
        std::uint64_t unknown = 0;
        static_assert(std::tuple_size<decltype(units_)>::value <= 64, "a bit for each");
        for (std::size_t i = 0; i < count_; ++i) {
            unknown |= static_cast<std::uint64_t>(!words.has(units_[i].key, units_[i].hash)) << i;
        }
        for (; unknown != 0; unknown &= unknown - 1) {
            const Unit& unit = units_[static_cast<std::size_t>(__builtin_ctzll(unknown))];
            if (unit.size <= kKeyBytes && !unit.is_part) {
                encoder_.ranks_.expect(unit.hash);
            }
        }
        std::uint32_t* out = out_;
        for (std::size_t i = 0; i < count_; ++i) {
            const Unit& unit = units_[i];
            const bool is_known = __builtin_expect(unit.size <= kKeyBytes, 1)
                                      ? words.copy(unit.key, unit.hash, out)
                                      : words.copy_long({unit.p, unit.size}, unit.key, unit.hash, out);
            if (__builtin_expect(!is_known, 0)) {
                out = encoder_.encode_unit(unit, out, scratch_);
            }
        }
        out_ = out;
        count_ = 0;
        return out;
    }

  private:
    const TextEncoder& encoder_;
    std::uint32_t* out_;
    Scratch& scratch_;
    std::array<Unit, 64> units_;
    std::size_t count_ = 0;
};

std::uint32_t* TextEncoder::encode(const char* p, const char* end, std::uint32_t* out, Scratch& scratch) const {
    Units units(*this, out, scratch);
    for_each_pretoken(pattern_, {p, static_cast<std::size_t>(end - p)}, [&](std::string_view word) {
        // In this order, because nobody can foresee whether a word is short.
        if ((word.size() > kKeyBytes || begins_wide_character(word[0]) || begins_wide_character(word.data()[1])) &&
            word.size() >= kShortestCut) {
            cut(word.data(), word.size(), units);
        } else {
            units.add(word.data(), word.size(), false, false);
        }
    });
    return units.encode();
}

// Adds a pre-token, cut where no token reaches across: words of scripts without spaces are as long as their clauses, each of
// them new, but most of their characters are joined to none or one of their neighbours.
void TextEncoder::cut(const char* p, std::size_t size, Units& units) const {
    const char* const end = p + size;
    const char* begin = p;  // of the part
    bool is_characters = true;
    std::uint32_t left = 0;
    for (const char* at = p; at != end;) {
        const char* const here = at;
        const std::uint32_t right = next_code_point(at);
        if (left >= kFirstWide && right >= kFirstWide && !ranks_.may_join(left, here, right)) {
            units.add(begin, static_cast<std::size_t>(here - begin), true, is_characters);
            begin = here;
            is_characters = true;
        }
        is_characters = is_characters && ranks_.of_character(right) != kNone && (here == begin || !ranks_.is_cut(here));
        left = right;
    }
    units.add(begin, static_cast<std::size_t>(end - begin), begin != p, is_characters);
}

// Encodes a unit that the cache does not have, and gives it to the cache.
std::uint32_t* TextEncoder::encode_unit(const Unit& unit, std::uint32_t* out, Scratch& scratch) const {
    const std::uint32_t rank = unit.is_part ? kNone : ranks_.find(unit.p, unit.size);
    std::uint32_t* stop = out;
    if (rank != kNone) {
        *stop++ = rank;
    } else {
        stop = unit.is_characters ? scratch.merger.merge_characters(ranks_, unit.p, unit.size, out)
                                  : scratch.merger.merge(ranks_, unit.p, unit.size, out);
    }
    const auto count = static_cast<std::size_t>(stop - out);
    if (unit.size <= kKeyBytes) {
        scratch.words.insert(unit.key, unit.hash, out, count);
    } else if (unit.size <= kLongestKept) {
        scratch.words.insert_long({unit.p, unit.size}, unit.key, unit.hash, out, count);
    }
    return stop;
}

}  // namespace qwen_data
