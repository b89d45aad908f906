#include "rank_table.h"

#include <algorithm>
#include <stdexcept>

#include "utf8.h"

namespace qwen_data {

namespace {

// Code points of one, two and three bytes.
constexpr std::uint32_t kFirstOfThree = 0x800;
constexpr std::uint32_t kFirstOfFour = 0x10000;

std::size_t sequence_size(char lead) {
    const auto byte = static_cast<unsigned char>(lead);
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace

RankTable::RankTable(View<const std::string_view> tokens)
    : pairs_(std::size_t{256} * 256),
      known_((std::size_t{1} << kFilterBits) / 64),
      starts_(1, 0),
      joins_((std::size_t{1} << kJoinBits) / 64),
      cut_joins_(std::size_t{256} * 256 / 64),
      characters_(kFirstOfFour, kNone) {
    if (tokens.size >= kNone) {
        throw std::invalid_argument(std::to_string(tokens.size) + " tokens are too many");
    }
    bytes_.fill(kNone);
    std::size_t num_slots = 1024;
    std::size_t num_bytes = kPadding;
    for (const std::string_view token : tokens) {
        num_bytes += token.size();
    }
    while (num_slots < tokens.size + tokens.size / 2) {
        num_slots *= 2;
    }
    slots_.assign(num_slots, Slot{0, 0, kNone});
    text_.reserve(num_bytes);
    for (const std::string_view token : tokens) {
        text_ += token;
        starts_.push_back(text_.size());
        longest_ = std::max(longest_, token.size());
    }
    text_.append(kPadding, '\0');
    for (std::uint32_t rank = 0; rank < tokens.size; ++rank) {
        const std::string_view token = this->token(rank);
        const std::string place = "the token of rank " + std::to_string(rank);
        if (token.empty()) {
            throw std::invalid_argument(place + " is empty");
        }
        if (find(token.data(), token.size()) != kNone) {
            throw std::invalid_argument(place + " is that of rank " +
                                        std::to_string(find(token.data(), token.size())));
        }
        std::uint64_t hash = 0;
        Slot filled{0, kLong, rank};
        if (token.size() <= kKeyBytes) {
            const WordKey key = word_key(token.data(), token.size());
            hash = hash_key(key);
            filled.low = key.low;
            filled.check = check_of(key, hash);
        } else {
            hash = hash_bytes(token.data(), token.size());
            filled.low = hash;
        }
        std::size_t slot = hash & (num_slots - 1);
        while (slots_[slot].rank != kNone) {
            slot = (slot + 1) & (num_slots - 1);
        }
        known_[filter_bit(hash) / 64] |= std::uint64_t{1} << (filter_bit(hash) % 64);
        slots_[slot] = filled;
        if (token.size() == 1) {
            bytes_[static_cast<unsigned char>(token[0])] = rank;
        }
        note_pairs(token, rank);
        note_joins(token);
    }
    const auto missing = std::find(bytes_.begin(), bytes_.end(), kNone);
    if (missing != bytes_.end()) {
        throw std::invalid_argument("no token is the byte " + std::to_string(missing - bytes_.begin()) +
                                    "; all 256 must be there");
    }
    for (Pair& pair : pairs_) {
        pair.early = pair.rank < pair.early ? pair.rank : kNone;
    }
    find_characters();
}

std::uint32_t RankTable::find_long(std::string_view word) const {
    const std::uint64_t hash = hash_bytes(word.data(), word.size());
    if (!may_have(hash)) {
        return kNone;
    }
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t place = hash & mask;; place = (place + 1) & mask) {
        const Slot& slot = slots_[place];
        if (slot.rank == kNone || (slot.low == hash && slot.check == kLong && token(slot.rank) == word)) {
            return slot.rank;
        }
    }
}

// Until all tokens are known, `early` is the lowest rank of those that are longer.
void RankTable::note_pairs(std::string_view token, std::uint32_t rank) {
    if (token.size() < 2) {
        return;
    }
    const auto pair = [&](std::size_t at) -> Pair& { return pairs_[pair_place(token[at], token[at + 1])]; };
    const std::size_t last = token.size() - 2;
    pair(0).begins = std::min(pair(0).begins, rank);
    pair(last).ends = std::min(pair(last).ends, rank);
    if (last == 0) {
        pair(0).rank = rank;
        return;
    }
    for (std::size_t at = 0; at <= last; ++at) {
        pair(at).early = std::min(pair(at).early, rank);
    }
}

void RankTable::note_joins(std::string_view token) {
    const auto set = [](LargeArray<std::uint64_t>& bits, std::size_t bit) {
        bits[bit / 64] |= std::uint64_t{1} << (bit % 64);
    };
    for (std::size_t at = 1; at < token.size(); ++at) {
        if (static_cast<unsigned char>(token[at]) < 0xE0 || static_cast<unsigned char>(token[at - 1]) < 0x80) {
            continue;  // Only between characters of three and more bytes is anything asked.
        }
        std::size_t left = at - 1;
        while (left > 0 && at - left < 4 && is_continuation(token[left])) {
            --left;
        }
        const std::size_t left_size = at - left;
        const std::size_t right_size = sequence_size(token[at]);
        const bool left_whole = !is_continuation(token[left]) && sequence_size(token[left]) == left_size;
        if (left_whole && token.size() - at >= right_size) {
            const char* characters = token.data() + left;
            const std::uint32_t left_code = next_code_point(characters);
            set(joins_, join(left_code, next_code_point(characters)));
        } else {
            set(cut_joins_, pair_place(token[at - 1], token[at]));
        }
    }
}

// A character may be begun with where its own bytes are joined to it before it is joined to anything: where all tokens that
// hold it and more have higher ranks than every union on the way to it. Then a character that is whole early makes no
// union possible that would have come before another one: that union has a higher rank than the last of those that make
// the character, which the other one came before.
void RankTable::find_characters() {
    std::vector<std::uint32_t> highest(kFirstOfFour, kNone);  // rank of the unions on the way to each character
    for (std::uint32_t rank = 0; rank < size(); ++rank) {
        const std::string_view token = this->token(rank);
        if (token.size() == 3 && sequence_size(token[0]) == 3 && first_invalid_utf8(token.data(), 3) == 3) {
            const char* p = token.data();
            const std::uint32_t first = pair(p[0], p[1]).rank;
            const std::uint32_t second = pair(p[1], p[2]).rank;
            // The lower of the two is joined; what is left over with it is the character.
            if (first != kNone || second != kNone) {
                const std::uint32_t c = next_code_point(p);
                characters_[c] = rank;
                highest[c] = std::max(std::min(first, second), rank);
            }
        }
    }
    for (std::uint32_t rank = 0; rank < size(); ++rank) {
        const std::string_view token = this->token(rank);
        if (token.size() <= 3) {
            continue;
        }
        for (std::size_t at = 0; at + 3 <= token.size(); ++at) {
            if (sequence_size(token[at]) == 3 && !is_continuation(token[at]) && is_continuation(token[at + 1]) &&
                is_continuation(token[at + 2])) {
                const char* p = token.data() + at;
                const std::uint32_t c = next_code_point(p);
                if (c >= kFirstOfThree && c < kFirstOfFour && rank < highest[c]) {
                    characters_[c] = kNone;
                }
            }
        }
    }
}

}  // namespace qwen_data
