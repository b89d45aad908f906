#include "piece_merger.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

#include "utf8.h"

namespace qwen_data {

std::uint32_t* PieceMerger::merge(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out) {
    if (size > kShortBytes) {
        return merge_long(ranks, p, size, out);
    }
    Parts parts;
    parts.count = size;
    for (std::size_t i = 0; i < size; ++i) {
        parts.ids[i] = ranks.of_byte(p[i]);
        parts.starts[i] = static_cast<std::uint8_t>(i);
        parts.unions[i] = i + 1 < size ? ranks.of_two(p[i], p[i + 1]) : kNone;
    }
    parts.starts[size] = static_cast<std::uint8_t>(size);
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
        parts.unions[i] = i + 1 < parts.count ? find_union(ranks, p, parts, i) : kNone;
    }
    return merge_parts(ranks, p, parts, out);
}

std::uint32_t PieceMerger::find_union(const RankTable& ranks, const char* p, const Parts& parts, std::size_t part) {
    ++num_lookups_;
    const std::size_t start = parts.starts[part];
    return ranks.find(p + start, parts.starts[part + 2] - start);
}

std::uint32_t* PieceMerger::merge_parts(const RankTable& ranks, const char* p, Parts& parts, std::uint32_t* out) {
    while (parts.count > 1) {
        std::size_t best = 0;
        std::uint32_t lowest = parts.unions[0];
        for (std::size_t i = 1; i + 1 < parts.count; ++i) {
            if (parts.unions[i] < lowest) {
                lowest = parts.unions[i];
                best = i;
            }
        }
        if (lowest == kNone) {
            break;
        }
        parts.ids[best] = lowest;
        --parts.count;
        for (std::size_t i = best + 1; i < parts.count; ++i) {
            parts.ids[i] = parts.ids[i + 1];
            parts.unions[i] = parts.unions[i + 1];
            parts.starts[i] = parts.starts[i + 1];
        }
        parts.starts[parts.count] = parts.starts[parts.count + 1];
        parts.unions[best] = best + 1 < parts.count ? find_union(ranks, p, parts, best) : kNone;
        if (best > 0) {
            parts.unions[best - 1] = find_union(ranks, p, parts, best - 1);
        }
    }
    return std::copy(parts.ids, parts.ids + parts.count, out);
}

std::uint32_t* PieceMerger::merge_long(const RankTable& ranks, const char* p, std::size_t size, std::uint32_t* out) {
    if (size >= kNone) {
        throw std::invalid_argument("a word of " + std::to_string(size) + " bytes is too long");
    }
    // A part stands at the place of its first byte; `out` holds the ids of parts, kNone behind their first bytes.
    struct Part {
        std::uint32_t next;
        std::uint32_t before;
        std::uint32_t union_rank;
    };
    std::vector<Part> parts(size);
    // Rank and place, smallest first. An entry holds as long as the part at its place has that union.
    std::vector<std::uint64_t> heap;
    const auto last = static_cast<std::uint32_t>(size);
    for (std::uint32_t i = 0; i < last; ++i) {
        out[i] = ranks.of_byte(p[i]);
        parts[i] = {i + 1, i - 1, i + 1 < last ? ranks.of_two(p[i], p[i + 1]) : kNone};
        if (parts[i].union_rank != kNone) {
            heap.push_back(pair_key(parts[i].union_rank, i));
        }
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    const auto renew = [&](std::uint32_t place) {
        Part& part = parts[place];
        part.union_rank = kNone;
        if (part.next != last) {
            ++num_lookups_;
            part.union_rank = ranks.find(p + place, parts[part.next].next - place);
        }
        if (part.union_rank != kNone) {
            heap.push_back(pair_key(part.union_rank, place));
            std::push_heap(heap.begin(), heap.end(), std::greater<>());
        }
    };
    while (!heap.empty()) {
        const auto rank = static_cast<std::uint32_t>(heap.front() >> 32);
        const auto place = static_cast<std::uint32_t>(heap.front());
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        heap.pop_back();
        if (parts[place].union_rank != rank || out[place] == kNone) {
            continue;
        }
        const std::uint32_t right = parts[place].next;
        out[place] = rank;
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
    return std::remove(out, out + size, kNone);
}

}  // namespace qwen_data
