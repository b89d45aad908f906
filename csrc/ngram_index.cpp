#include "ngram_index.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "shingles.h"
#include "text_hash.h"
#include "utf8.h"
#include "words.h"

namespace qwen_data {

namespace {

// n-grams of different lengths have different keys even where their words' polynomials agree.
std::uint64_t key_of(std::uint64_t shingle, std::size_t length) { return mix64(shingle + length); }

}  // namespace

NgramIndex::NgramIndex(std::size_t n, std::size_t min_words, std::size_t short_n)
    : n_(n), min_words_(min_words), short_n_(short_n), entries_(1) {
    if (min_words < 1 || min_words > short_n || short_n > n) {
        throw std::invalid_argument("NgramIndex: 1 <= min_words=" + std::to_string(min_words) + " <= short_n=" +
                                    std::to_string(short_n) + " <= n=" + std::to_string(n) + " must hold");
    }
    grow();
}

std::size_t NgramIndex::add(const Characters& characters, std::string_view normalized, std::uint32_t item) {
    std::vector<std::uint64_t> words;
    append_word_hashes(characters, normalized, words);
    if (words.size() < min_words_) {
        return 0;
    }
    const std::size_t length = words.size() >= n_ ? n_ : std::min(short_n_, words.size());
    const auto place = std::lower_bound(lengths_.begin(), lengths_.end(), length);
    if (place == lengths_.end() || *place != length) {
        lengths_.insert(place, length);
    }
    for_each_shingle(words, length, [&](std::size_t, std::uint64_t shingle) { insert(key_of(shingle, length), item); });
    return words.size() - length + 1;
}

void NgramIndex::insert(std::uint64_t key, std::uint32_t item) {
    if (2 * (num_keys_ + 1) > slots_.size()) {
        grow();
    }
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = key & mask;
    while (slots_[slot] != 0 && entries_[slots_[slot]].key != key) {
        slot = (slot + 1) & mask;
    }
    for (std::uint32_t entry = slots_[slot]; entry != 0; entry = entries_[entry].next) {
        if (entries_[entry].item == item) {
            return;
        }
    }
    if (slots_[slot] == 0) {
        ++num_keys_;
        filter_[(key >> 6) & filter_mask_] |= std::uint64_t{1} << (key & 63);
    }
    if (entries_.size() >= 0xFFFFFFFFULL) {
        throw std::length_error("NgramIndex: more than 2^32 n-grams");
    }
    entries_.push_back({key, item, slots_[slot]});
    slots_[slot] = static_cast<std::uint32_t>(entries_.size() - 1);
}

void NgramIndex::grow() {
    const std::vector<std::uint32_t> old = std::move(slots_);
    slots_.assign(std::max<std::size_t>(1024, 2 * old.size()), 0);
    filter_.assign(slots_.size() / 8, 0);
    filter_mask_ = filter_.size() - 1;
    const std::size_t mask = slots_.size() - 1;
    for (const std::uint32_t entry : old) {
        if (entry == 0) {
            continue;
        }
        const std::uint64_t key = entries_[entry].key;
        std::size_t slot = key & mask;
        while (slots_[slot] != 0) {
            slot = (slot + 1) & mask;
        }
        slots_[slot] = entry;
        filter_[(key >> 6) & filter_mask_] |= std::uint64_t{1} << (key & 63);
    }
}

std::uint32_t NgramIndex::lookup(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = key & mask;
    while (slots_[slot] != 0 && entries_[slots_[slot]].key != key) {
        slot = (slot + 1) & mask;
    }
    return slots_[slot];
}

void NgramIndex::find(const Characters& characters, std::string_view text, bool is_normalized, MatchScratch& scratch,
                      std::vector<NgramMatch>& matches) const {
    if (!is_normalized) {
        characters.normalize(text, scratch.normalized, &scratch.sources);
    }
    const std::string_view body = is_normalized ? text : std::string_view(scratch.normalized);
    scratch.words.clear();
    scratch.begins.clear();
    scratch.ends.clear();
    const char* counted_to = body.data();
    std::size_t counted = 0;
    for_each_word(characters, body, [&](const Word& word) {
        if (word.is_symbol) {
            return;
        }
        scratch.words.push_back(hash_bytes(word.begin, static_cast<std::size_t>(word.end - word.begin)));
        if (is_normalized) {
            counted += count_code_points(counted_to, word.begin);
            counted_to = word.begin;
            scratch.begins.push_back(static_cast<std::uint32_t>(counted));
            scratch.ends.push_back(static_cast<std::uint32_t>(counted + word.num_code_points));
        } else {
            scratch.begins.push_back(scratch.sources[static_cast<std::size_t>(word.begin - body.data())]);
            scratch.ends.push_back(scratch.sources[static_cast<std::size_t>(word.end - body.data()) - 1] + 1);
        }
    });
    for (const std::size_t length : lengths_) {
        for_each_shingle(scratch.words, length, [&](std::size_t position, std::uint64_t shingle) {
            const std::uint64_t key = key_of(shingle, length);
            if (!may_hold(key)) {
                return;
            }
            const std::size_t first = matches.size();
            for (std::uint32_t entry = lookup(key); entry != 0; entry = entries_[entry].next) {
                matches.push_back(
                    {entries_[entry].item, scratch.begins[position], scratch.ends[position + length - 1]});
            }
            std::sort(matches.begin() + static_cast<std::ptrdiff_t>(first), matches.end(),
                      [](const NgramMatch& a, const NgramMatch& b) { return a.item < b.item; });
        });
    }
}

}  // namespace qwen_data
