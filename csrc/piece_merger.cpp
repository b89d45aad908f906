#include "piece_merger.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "copy_tokens.h"
#include "utf8.h"

namespace qwen_data {

namespace {

// Unions by rank, and those of one rank by place. Most come in the order of their places, so that a list for each rank does
// what one large heap would do in another order of magnitude of memory accesses.
class UnionQueue {
  public:
    struct Union {
        std::uint32_t rank;
        std::uint32_t place;
    };

    void add(std::uint32_t rank, std::uint32_t place) {
        if (rank == kNone) {
            return;
        }
        if (rank != last_rank_) {
            last_rank_ = rank;
            last_ = &places_[rank];
        }
        if (last_->in_order.empty() || last_->in_order.back() <= place) {
            last_->in_order.push_back(place);
        } else {
            last_->late.push_back(place);
            std::push_heap(last_->late.begin(), last_->late.end(), std::greater<>());
        }
    }

    // Takes the leftmost union of the lowest rank; false if there is none.
    bool take(Union& first) {
        while (!places_.empty()) {
            const auto lowest = places_.begin();
            Places& places = lowest->second;
            const bool has_next = places.next < places.in_order.size();
            if (!places.late.empty() && !(has_next && places.in_order[places.next] <= places.late.front())) {
                first = {lowest->first, places.late.front()};
                std::pop_heap(places.late.begin(), places.late.end(), std::greater<>());
                places.late.pop_back();
                return true;
            }
            if (has_next) {
                first = {lowest->first, places.in_order[places.next++]};
                return true;
            }
            if (last_rank_ == lowest->first) {
                last_rank_ = kNone;
            }
            places_.erase(lowest);
        }
        return false;
    }

  private:
    struct Places {
        std::vector<std::uint32_t> in_order;  // ascending
        std::size_t next = 0;                 // of in_order
        std::vector<std::uint32_t> late;      // a heap of those that came after one further to the right
    };

    std::map<std::uint32_t, Places> places_;
    std::uint32_t last_rank_ = kNone;  // whose places were added to last
    Places* last_ = nullptr;
};

// Writes the rank of each two bytes to `pairs`, and gives the bits of those that may be joined before anything else: no
// union that takes one of the two bytes, with whatever is on its other side by then, is of a lower rank, nor is any union
// that has both in it. Then they are joined before either of them is joined to something else, and what is joined
// meanwhile is of lower ranks than all that becomes possible through them. No two such pairs share a byte.
std::uint64_t find_early_pairs(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* pairs) {
    std::uint64_t early = 0;
    std::uint32_t before = kNone;  // the lowest rank of what ends with the first byte of a pair and the one before it
    RankTable::Pair here = ranks.pair(p[0], p[1]);
    for (std::size_t i = 0; i + 2 < size; ++i) {
        const RankTable::Pair& next = ranks.pair(p[i + 1], p[i + 2]);
        pairs[i] = here.rank;
        early |= static_cast<std::uint64_t>((here.early < before) & (here.early < next.begins)) << i;
        before = here.ends;
        here = next;
    }
    pairs[size - 2] = here.rank;
    return early | static_cast<std::uint64_t>(here.early < before) << (size - 2);
}

// Moves p[1] to p[4] to p[0] to p[3].
template <typename T>
void move_four(T* p) {
    T four[4];
    std::memcpy(four, p + 1, sizeof(four));
    std::memcpy(p, four, sizeof(four));
}

}  // namespace

std::uint32_t* PieceMerger::merge(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out) {
    if (size > kShortBytes) {
        return merge_long(ranks, p, size, out);
    }
    if (size == 1) {
        *out = ranks.of_byte(*p);
        return out + 1;
    }
    std::uint32_t pairs[kShortBytes];
    const std::uint64_t early = find_early_pairs(ranks, p, size, pairs);
    Parts parts;
    parts.count = 0;
    for (std::size_t i = 0; i < size; ++parts.count) {
        const bool is_pair = (early >> i & 1) != 0;
        parts.starts[parts.count] = static_cast<std::uint8_t>(i);
        parts.ids[parts.count] = is_pair ? pairs[i] : ranks.of_byte(p[i]);
        i += is_pair ? 2 : 1;
    }
    parts.starts[parts.count] = static_cast<std::uint8_t>(size);
    for (std::size_t i = 0; i + 1 < parts.count; ++i) {
        const std::size_t start = parts.starts[i];
        const std::size_t length = parts.starts[i + 2] - start;
        parts.unions[i] = length == 2 ? pairs[start] : find_union(ranks, p + start, length);
    }
    parts.unions[parts.count - 1] = kNone;
    return merge_parts(ranks, p, parts, out);
}

std::uint32_t* PieceMerger::merge_characters(const RankTable& ranks, const char* p, std::size_t size,
                                             std::uint32_t* out) {
    if (size > kShortBytes) {
        return merge_long(ranks, p, size, out);
    }
    Parts parts;
    parts.count = 0;
    for (const char* at = p; at != p + size; ++parts.count) {
        parts.starts[parts.count] = static_cast<std::uint8_t>(at - p);
        parts.ids[parts.count] = ranks.of_character(next_code_point(at));
    }
    parts.starts[parts.count] = static_cast<std::uint8_t>(size);
    for (std::size_t i = 0; i < parts.count; ++i) {
        parts.unions[i] = kNone;
        if (i + 1 < parts.count) {
            const std::size_t start = parts.starts[i];
            parts.unions[i] = find_union(ranks, p + start, parts.starts[i + 2] - start);
        }
    }
    return merge_parts(ranks, p, parts, out);
}

RankTable::Sought PieceMerger::begin_union(const RankTable& ranks, const char* p, const Parts& parts,
                                           std::size_t part) {
    ++num_lookups_;
    const std::size_t start = parts.starts[part];
    return ranks.begin(p + start, parts.starts[part + 2] - start);
}

void PieceMerger::Parts::join(std::size_t i, std::uint32_t rank) {
    ids[i] = rank;
    for (++i; i < count; i += 4) {
        move_four(ids + i);
        move_four(unions + i);
        move_four(starts + i);
    }
    --count;
}

std::uint32_t* PieceMerger::merge_parts(const RankTable& ranks, const char* p, Parts& parts, std::uint32_t* out) {
    while (parts.count > 1) {
        // The lowest rank, and of its places the first, as one number: a branch would be taken for random reasons.
        std::uint64_t lowest = ~std::uint64_t{0};
        for (std::size_t i = 0; i + 1 < parts.count; ++i) {
            lowest = std::min(lowest, std::uint64_t{parts.unions[i]} << 8 | i);
        }
        const auto rank = static_cast<std::uint32_t>(lowest >> 8);
        if (rank == kNone) {
            break;
        }
        const std::size_t best = lowest & 0xFF;
        parts.join(best, rank);
        const bool has_next = best + 1 < parts.count;
        const RankTable::Sought right = has_next ? begin_union(ranks, p, parts, best) : RankTable::Sought();
        if (best > 0) {
            parts.unions[best - 1] = ranks.finish(begin_union(ranks, p, parts, best - 1));
        }
        parts.unions[best] = ranks.finish(right);
    }
    return copy_tokens(parts.ids, parts.count, out);
}

std::uint32_t* PieceMerger::merge_long(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out) {
    if (size >= kNone) {
        throw std::invalid_argument("a word of " + std::to_string(size) + " bytes is too long");
    }
    std::vector<LongPart>& parts = parts_;
    if (parts.size() < size) {
        parts.resize(size);
    }
    UnionQueue queue;
    const auto last = static_cast<std::uint32_t>(size);
    for (std::uint32_t i = 0; i < last; ++i) {
        out[i] = ranks.of_byte(p[i]);
        parts[i] = {i + 1, i - 1, i + 1 < last ? ranks.pair(p[i], p[i + 1]).rank : kNone};
        queue.add(parts[i].union_rank, i);
    }
    const auto renew = [&](std::uint32_t place) {
        LongPart& part = parts[place];
        part.union_rank = kNone;
        if (part.next != last) {
            part.union_rank = find_union(ranks, p + place, parts[part.next].next - place);
            queue.add(part.union_rank, place);
        }
    };
    for (UnionQueue::Union first{}; queue.take(first);) {
        const std::uint32_t place = first.place;
        if (parts[place].union_rank != first.rank || out[place] == kNone) {
            continue;  // Another union has taken one of the two since.
        }
        const std::uint32_t right = parts[place].next;
        out[place] = first.rank;
        out[right] = kNone;
        parts[place].next = parts[right].next;
        if (parts[place].next != last) {
            parts[parts[place].next].before = place;
        }
        if (place > 0) {
            renew(parts[place].before);
        }
        renew(place);
    }
    if (parts.size() > kMostKept) {
        std::vector<LongPart>().swap(parts);
    }
    return std::remove(out, out + size, kNone);
}

}  // namespace qwen_data
