// The tokens of words that came lately, in bounded memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "copy_tokens.h"
#include "large_array.h"
#include "word_key.h"

namespace qwen_data {

// Sets of two words, each set a cache line of the processor; a new word takes the place of the older of its set.
class WordCache {
  public:
    // Words of more tokens have them in a store beside the sets, whose oldest content is overwritten by the newest.
    static constexpr std::size_t kTokens = 3;

    WordCache() : sets_(kSets), store_(kStore) {}

    // Tells the processor that this word will be asked for.
    void expect(std::uint64_t hash) const { __builtin_prefetch(&sets_[hash & (kSets - 1)]); }

    // Whether there is an entry of this key.
    bool has(const WordKey& key, std::uint64_t hash) const {
        const Set& set = sets_[hash & (kSets - 1)];
        return set.entries[0].is(key) | set.entries[1].is(key);
    }

    // Writes the tokens of `key` to `out` and advances it behind them, if they are known. Up to kSlackTokens more are
    // written.
    bool copy(const WordKey& key, std::uint64_t hash, std::uint32_t*& out) const {
        const Entry* const entry = find(key, hash);
        if (entry == nullptr) {
            return false;
        }
        std::memcpy(out, entry->tokens, sizeof(entry->tokens));
        if (__builtin_expect(entry->count <= kTokens, 1)) {
            out += entry->count;
            return true;
        }
        return copy_stored(*entry, out);
    }

    // The same of a longer word, whose key is made of a hash: its bytes are compared.
    bool copy_long(std::string_view word, const WordKey& key, std::uint64_t hash, std::uint32_t*& out) const {
        const Entry* const entry = find(key, hash);
        if (entry == nullptr) {
            return false;
        }
        const std::uint32_t* const tokens = stored(*entry);
        if (tokens == nullptr || std::memcmp(tokens + entry->count, word.data(), word.size()) != 0) {
            return false;
        }
        out = copy_tokens(tokens, entry->count, out);
        return true;
    }

    // Keeps the tokens of `key`, behind which kSlackTokens more are readable.
    void insert(const WordKey& key, std::uint64_t hash, const std::uint32_t* tokens, std::size_t count) {
        Entry entry{key, {0, 0, 0}, static_cast<std::uint32_t>(count)};
        if (count <= kTokens) {
            std::memcpy(entry.tokens, tokens, sizeof(entry.tokens));
        } else {
            store(entry, tokens, {});
        }
        put(entry, hash);
    }

    void insert_long(std::string_view word, const WordKey& key, std::uint64_t hash, const std::uint32_t* tokens,
                     std::size_t count) {
        Entry entry{key, {0, 0, 0}, static_cast<std::uint32_t>(count)};
        store(entry, tokens, word);
        put(entry, hash);
    }

  private:
    static constexpr std::size_t kSets = std::size_t{1} << 16;  // 4 MiB
    static constexpr std::size_t kStore = std::size_t{1} << 20;  // 4 MiB

    struct Entry {
        WordKey key;  // all zero: none
        std::uint32_t tokens[kTokens] = {0, 0, 0};
        std::uint32_t count = 0;

        // Without a branch: which of a set's two it is cannot be foreseen.
        bool is(const WordKey& other) const { return ((key.low ^ other.low) | (key.high ^ other.high)) == 0; }
    };
    struct alignas(64) Set {
        Entry entries[2];
    };

    const Entry* find(const WordKey& key, std::uint64_t hash) const {
        const Set& set = sets_[hash & (kSets - 1)];
        const Entry& entry = set.entries[set.entries[1].is(key)];
        return entry.is(key) ? &entry : nullptr;
    }

    // Apart from what is done for nearly every word, so that this stays small.
    __attribute__((noinline)) bool copy_stored(const Entry& entry, std::uint32_t*& out) const {
        const std::uint32_t* const tokens = stored(entry);
        if (tokens == nullptr) {
            return false;
        }
        out = copy_tokens(tokens, entry.count, out);
        return true;
    }

    void put(const Entry& entry, std::uint64_t hash) {
        Set& set = sets_[hash & (kSets - 1)];
        set.entries[1] = set.entries[0];
        set.entries[0] = entry;
    }

    // The tokens of an entry that has them in the store; nullptr if they are overwritten.
    const std::uint32_t* stored(const Entry& entry) const {
        const std::uint64_t place = static_cast<std::uint64_t>(entry.tokens[1]) << 32 | entry.tokens[0];
        return written_ - place <= kStore ? store_.data() + place % kStore : nullptr;
    }

    // Puts tokens, and bytes behind them, into the store.
    void store(Entry& entry, const std::uint32_t* tokens, std::string_view bytes) {
        const std::size_t size = entry.count + std::max((bytes.size() + 3) / 4, kSlackTokens);
        if (kStore - written_ % kStore < size) {
            written_ += kStore - written_ % kStore;
        }
        std::uint32_t* const place = store_.data() + written_ % kStore;
        copy_tokens(tokens, entry.count, place);
        std::memcpy(place + entry.count, bytes.data(), bytes.size());
        entry.tokens[0] = static_cast<std::uint32_t>(written_);
        entry.tokens[1] = static_cast<std::uint32_t>(written_ >> 32);
        written_ += size;
    }

    LargeArray<Set> sets_;
    LargeArray<std::uint32_t> store_;
    std::uint64_t written_ = 0;  // words of the store since the beginning
};

}  // namespace qwen_data
