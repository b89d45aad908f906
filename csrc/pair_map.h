// A map from pairs of token ids to a number; nothing is ever removed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "text_hash.h"

namespace qwen_data {

// No token, no position, no entry.
constexpr std::uint32_t kNone = 0xFFFFFFFF;

inline std::uint64_t pair_key(std::uint32_t left, std::uint32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | right;
}

class PairMap {
  public:
    PairMap() : slots_(1024) {}

    // The number of a pair, kNone if it has none.
    std::uint32_t find(std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        for (std::size_t place = mix64(key) & mask;; place = (place + 1) & mask) {
            if (slots_[place].value == kNone || slots_[place].key == key) {
                return slots_[place].value;
            }
        }
    }

    // The place of a pair's number, which is made `value` if it has none yet. Valid until the next insertion.
    std::uint32_t& insert(std::uint64_t key, std::uint32_t value) {
        if (used_ * 2 >= slots_.size()) {
            grow();
        }
        Slot& slot = place_of(slots_, key);
        if (slot.value == kNone) {
            slot = Slot{key, value};
            ++used_;
        }
        return slot.value;
    }

  private:
    struct Slot {
        std::uint64_t key = 0;
        std::uint32_t value = kNone;
    };

    static Slot& place_of(std::vector<Slot>& slots, std::uint64_t key) {
        const std::size_t mask = slots.size() - 1;
        std::size_t place = mix64(key) & mask;
        while (slots[place].value != kNone && slots[place].key != key) {
            place = (place + 1) & mask;
        }
        return slots[place];
    }

    void grow() {
        std::vector<Slot> larger(slots_.size() * 2);
        for (const Slot& slot : slots_) {
            if (slot.value != kNone) {
                place_of(larger, slot.key) = slot;
            }
        }
        slots_.swap(larger);
    }

    std::vector<Slot> slots_;
    std::size_t used_ = 0;
};

}  // namespace qwen_data
