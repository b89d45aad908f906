// How often each pre-token of a corpus occurs, by group (language).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "views.h"

namespace qwen_data {

// A pre-token of one group.
struct CountedPretoken {
    std::string_view text;
    std::uint64_t count;
    std::uint32_t group;
};

// Counts of (pre-token, group), an open-addressing table whose strings lie one after the other.
class PretokenTable {
  public:
    PretokenTable() : slots_(kFirstSlots) {}

    void add(std::string_view text, std::uint32_t group, std::uint64_t count);

    // Calls visit(hash, pre-token) for every entry, in no particular order.
    template <typename Visit>
    void for_each(Visit&& visit) const {
        for (const Slot& slot : slots_) {
            if (slot.count != 0) {
                visit(slot.hash, CountedPretoken{text_of(slot), slot.count, slot.group});
            }
        }
    }

  private:
    static constexpr std::size_t kFirstSlots = 1024;

    struct Slot {
        std::uint64_t hash = 0;
        std::uint64_t count = 0;  // 0: empty
        std::size_t begin = 0;
        std::uint32_t size = 0;
        std::uint32_t group = 0;
    };

    std::string_view text_of(const Slot& slot) const { return {bytes_.data() + slot.begin, slot.size}; }
    void grow();

    std::vector<Slot> slots_;
    std::size_t used_ = 0;
    std::string bytes_;
};

// Counts texts by several threads, each into a table of its own: sums, so the result does not depend on their number.
class PretokenCounts {
  public:
    explicit PretokenCounts(std::size_t threads) : tables_(threads > 0 ? threads : 1) {}

    // Adds the pre-tokens of texts of one group, each valid UTF-8 and below 4 GiB.
    void add(View<const std::string_view> texts, std::uint32_t group);

    // Every (pre-token, group) once, in no particular order; views into this object.
    std::vector<CountedPretoken> all() const;

  private:
    std::vector<PretokenTable> tables_;  // [threads]
};

}  // namespace qwen_data
