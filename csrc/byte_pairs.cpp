#include "byte_pairs.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

namespace qwen_data {

BytePairs::BytePairs(View<const std::string_view> tokens) {
    if (tokens.size >= kNone) {
        throw std::invalid_argument(std::to_string(tokens.size) + " tokens are too many");
    }
    bytes_.fill(kNone);
    for (std::size_t rank = 0; rank < tokens.size; ++rank) {
        if (tokens[rank].size() == 1) {
            std::uint32_t& id = bytes_[static_cast<unsigned char>(tokens[rank][0])];
            if (id != kNone) {
                throw std::invalid_argument("the token of rank " + std::to_string(rank) + " is that of rank " +
                                            std::to_string(id));
            }
            id = static_cast<std::uint32_t>(rank);
        }
    }
    const auto missing = std::find(bytes_.begin(), bytes_.end(), kNone);
    if (missing != bytes_.end()) {
        throw std::invalid_argument("no token is the byte " + std::to_string(missing - bytes_.begin()) +
                                    "; all 256 must be there");
    }
    lengths_.reserve(tokens.size);
    std::vector<std::uint32_t> pieces;
    Scratch scratch;
    for (std::size_t rank = 0; rank < tokens.size; ++rank) {
        const std::string_view token = tokens[rank];
        if (token.size() != 1) {
            encode(token, pieces, scratch);
            if (pieces.size() != 2) {
                throw std::invalid_argument("the token of rank " + std::to_string(rank) + " is made of " +
                                            std::to_string(pieces.size()) +
                                            " of the tokens before it; it must be made of two");
            }
            ranks_.insert(pair_key(pieces[0], pieces[1]), static_cast<std::uint32_t>(rank));
        }
        lengths_.push_back(static_cast<std::uint32_t>(token.size()));
    }
}

void BytePairs::encode(std::string_view text, std::vector<std::uint32_t>& ids, Scratch& scratch) const {
    const std::size_t size = text.size();
    if (size >= kNone) {
        throw std::invalid_argument("a pre-token of " + std::to_string(size) + " bytes is too long");
    }
    auto& [next, before, heap] = scratch;
    ids.resize(size);
    next.resize(size);
    before.resize(size);
    heap.clear();
    for (std::size_t i = 0; i < size; ++i) {
        ids[i] = bytes_[static_cast<unsigned char>(text[i])];
        next[i] = i + 1 < size ? static_cast<std::uint32_t>(i + 1) : kNone;
        before[i] = i > 0 ? static_cast<std::uint32_t>(i - 1) : kNone;
    }
    // An entry is rank and place, smallest first. It holds as long as the two tokens at its place still have that union.
    const auto offer = [&](std::uint32_t place) {
        if (place == kNone || next[place] == kNone) {
            return;
        }
        const std::uint32_t rank = ranks_.find(pair_key(ids[place], ids[next[place]]));
        if (rank != kNone) {
            heap.push_back(pair_key(rank, place));
            std::push_heap(heap.begin(), heap.end(), std::greater<>());
        }
    };
    for (std::size_t i = 0; i + 1 < size; ++i) {
        offer(static_cast<std::uint32_t>(i));
    }
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const auto rank = static_cast<std::uint32_t>(heap.back() >> 32);
        const auto place = static_cast<std::uint32_t>(heap.back());
        heap.pop_back();
        const std::uint32_t right = ids[place] == kNone ? kNone : next[place];
        if (right == kNone || ranks_.find(pair_key(ids[place], ids[right])) != rank) {
            continue;
        }
        ids[place] = rank;
        ids[right] = kNone;
        next[place] = next[right];
        if (next[right] != kNone) {
            before[next[right]] = place;
        }
        offer(before[place]);
        offer(place);
    }
    ids.erase(std::remove(ids.begin(), ids.end(), kNone), ids.end());
}

}  // namespace qwen_data
