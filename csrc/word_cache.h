// The tokens of words that came lately, in bounded memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "large_array.h"
#include "word_key.h"

namespace qwen_data {

// Sets of two words, each set a cache line of the processor; a new word takes the place of the older of its set.
class WordCache {
  public:
    // Words of more tokens have them in a store beside the sets.
    static constexpr std::size_t kTokens = 3;

    WordCache() : sets_(kSets) { more_.reserve(kMoreTokens); }

    // Tells the processor that this word will be asked for.
    void expect(std::uint64_t hash) const { __builtin_prefetch(&sets_[hash & (kSets - 1)]); }

    // Whether the tokens of a short word are known.
    bool has(const WordKey& key, std::uint64_t hash) const {
        const Set& set = sets_[hash & (kSets - 1)];
        return set.entries[0].key == key || set.entries[1].key == key;
    }

    // Writes the tokens of `key` to `out` and advances it behind them, if they are known. Up to four tokens are written
    // whatever their number.
    bool copy(const WordKey& key, std::uint64_t hash, std::uint32_t*& out) const {
        const Entry* const entry = find(key, hash);
        if (entry == nullptr) {
            return false;
        }
        if (entry->count <= kTokens) {
            std::copy(entry->tokens, entry->tokens + kTokens, out);
        } else {
            std::copy_n(more_.data() + entry->tokens[0], entry->count, out);
        }
        out += entry->count;
        return true;
    }

    // The same of a longer word, whose key is made of a hash: its bytes are compared.
    bool copy_long(std::string_view word, const WordKey& key, std::uint64_t hash, std::uint32_t*& out) const {
        const Entry* const entry = find(key, hash);
        if (entry == nullptr) {
            return false;
        }
        const std::uint32_t* const tokens = more_.data() + entry->tokens[0];
        if (std::memcmp(tokens + entry->count, word.data(), word.size()) != 0) {
            return false;
        }
        out = std::copy_n(tokens, entry->count, out);
        return true;
    }

    void insert(const WordKey& key, std::uint64_t hash, const std::uint32_t* tokens, std::size_t count) {
        Entry entry{key, {0, 0, 0}, static_cast<std::uint32_t>(count)};
        if (count <= kTokens) {
            std::copy_n(tokens, count, entry.tokens);
        } else {
            entry.tokens[0] = store(tokens, count, {});
        }
        put(entry, hash);
    }

    void insert_long(std::string_view word, const WordKey& key, std::uint64_t hash, const std::uint32_t* tokens,
                     std::size_t count) {
        Entry entry{key, {0, 0, 0}, static_cast<std::uint32_t>(count)};
        entry.tokens[0] = store(tokens, count, word);
        put(entry, hash);
    }

  private:
    static constexpr std::size_t kSets = std::size_t{1} << 16;  // 4 MiB
    static constexpr std::size_t kMoreTokens = std::size_t{1} << 20;

    struct Entry {
        WordKey key;  // all zero: none
        std::uint32_t tokens[kTokens] = {0, 0, 0};
        std::uint32_t count = 0;
    };
    struct alignas(64) Set {
        Entry entries[2];
    };

    const Entry* find(const WordKey& key, std::uint64_t hash) const {
        const Set& set = sets_[hash & (kSets - 1)];
        return set.entries[0].key == key ? &set.entries[0] : set.entries[1].key == key ? &set.entries[1] : nullptr;
    }

    void put(const Entry& entry, std::uint64_t hash) {
        Set& set = sets_[hash & (kSets - 1)];
        set.entries[1] = set.entries[0];
        set.entries[0] = entry;
    }

    // Where tokens, and bytes behind them, lie in the store; when it is full, everything is forgotten.
    std::uint32_t store(const std::uint32_t* tokens, std::size_t count, std::string_view bytes) {
        const std::size_t size = count + (bytes.size() + 3) / 4;
        if (more_.size() + size > kMoreTokens) {
            std::fill(sets_.begin(), sets_.end(), Set{});
            more_.clear();
        }
        const std::size_t place = more_.size();
        more_.resize(place + size);
        std::copy_n(tokens, count, more_.begin() + static_cast<std::ptrdiff_t>(place));
        std::memcpy(more_.data() + place + count, bytes.data(), bytes.size());
        return static_cast<std::uint32_t>(place);
    }

    LargeArray<Set> sets_;
    std::vector<std::uint32_t> more_;
};

}  // namespace qwen_data
