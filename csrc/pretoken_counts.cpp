#include "pretoken_counts.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>

#include "parallel.h"
#include "pretokens.h"
#include "text_hash.h"

namespace qwen_data {

namespace {

struct Nothing {};

}  // namespace

void PretokenTable::add(std::string_view text, std::uint32_t group, std::uint64_t count) {
    const std::uint64_t hash = mix64(hash_bytes(text.data(), text.size()) + group);
    const std::size_t mask = slots_.size() - 1;
    std::size_t place = hash & mask;
    for (; slots_[place].count != 0; place = (place + 1) & mask) {
        Slot& slot = slots_[place];
        if (slot.hash == hash && slot.group == group && text_of(slot) == text) {
            slot.count += count;
            return;
        }
    }
    slots_[place] = Slot{hash, count, bytes_.size(), static_cast<std::uint32_t>(text.size()), group};
    bytes_.append(text);
    if (++used_ * 10 > slots_.size() * 7) {
        grow();
    }
}

void PretokenTable::grow() {
    std::vector<Slot> larger(slots_.size() * 2);
    const std::size_t mask = larger.size() - 1;
    for (const Slot& slot : slots_) {
        if (slot.count != 0) {
            std::size_t place = slot.hash & mask;
            while (larger[place].count != 0) {
                place = (place + 1) & mask;
            }
            larger[place] = slot;
        }
    }
    slots_.swap(larger);
}

void PretokenCounts::add(View<const std::string_view> texts, std::uint32_t group) {
    for (const std::string_view text : texts) {
        if (text.size() > std::numeric_limits<std::uint32_t>::max()) {
            throw std::invalid_argument("a text of " + std::to_string(text.size()) + " bytes is too long");
        }
    }
    const PretokenPattern pattern;
    std::atomic<std::size_t> next{0};
    // An item is a table, so that no two threads ever write to one; the texts are handed out among them.
    parallel_for<Nothing>(tables_.size(), tables_.size(), [&](std::size_t number, Nothing&) {
        PretokenTable& table = tables_[number];
        for (std::size_t text = next++; text < texts.size; text = next++) {
            for_each_pretoken(pattern, texts[text],
                              [&](std::string_view pretoken) { table.add(pretoken, group, 1); });
        }
    });
}

std::vector<CountedPretoken> PretokenCounts::all() const {
    // Part i joins what the tables have of the hashes that leave the remainder i.
    const std::size_t num_parts = tables_.size();
    std::vector<std::vector<CountedPretoken>> parts(num_parts);
    parallel_for<Nothing>(num_parts, num_parts, [&](std::size_t part, Nothing&) {
        struct Known {
            std::uint64_t hash;
            CountedPretoken pretoken;
        };
        std::vector<Known> known;
        for (const PretokenTable& table : tables_) {
            table.for_each([&](std::uint64_t hash, const CountedPretoken& pretoken) {
                if ((hash >> 32) % num_parts == part) {
                    known.push_back({hash, pretoken});
                }
            });
        }
        std::sort(known.begin(), known.end(), [](const Known& a, const Known& b) {
            if (a.hash != b.hash) {
                return a.hash < b.hash;
            }
            return a.pretoken.group != b.pretoken.group ? a.pretoken.group < b.pretoken.group
                                                        : a.pretoken.text < b.pretoken.text;
        });
        for (const Known& one : known) {
            auto& out = parts[part];
            if (!out.empty() && out.back().group == one.pretoken.group && out.back().text == one.pretoken.text) {
                out.back().count += one.pretoken.count;
            } else {
                out.push_back(one.pretoken);
            }
        }
    });
    std::vector<CountedPretoken> all;
    for (const auto& part : parts) {
        all.insert(all.end(), part.begin(), part.end());
    }
    return all;
}

}  // namespace qwen_data
