#include "gather.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace qwen_data {

namespace {

// Arrays of tokens, counted as if they lay one after the other.
class Spools {
  public:
    explicit Spools(const std::vector<View<const std::int32_t>>& spools) : spools_(spools) {
        for (const View<const std::int32_t>& spool : spools) {
            ends_.push_back((ends_.empty() ? 0 : ends_.back()) + static_cast<std::int64_t>(spool.size));
        }
    }

    // The `length` tokens from `start` on; nullptr if no spool has all of them.
    const std::int32_t* find(std::int64_t start, std::int64_t length) const {
        static constexpr std::int32_t kNoTokens[1] = {};
        if (start < 0 || length < 0 || length > size() - start) {
            return nullptr;
        }
        if (length == 0) {
            return kNoTokens;
        }
        const auto end = std::upper_bound(ends_.begin(), ends_.end(), start);
        if (length > *end - start) {
            return nullptr;
        }
        const View<const std::int32_t>& spool = spools_[static_cast<std::size_t>(end - ends_.begin())];
        return spool.data + (start - (*end - static_cast<std::int64_t>(spool.size)));
    }

    std::int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  private:
    const std::vector<View<const std::int32_t>>& spools_;
    std::vector<std::int64_t> ends_;  // of each spool
};

}  // namespace

std::size_t gather_documents(const std::vector<View<const std::int32_t>>& spools, View<const std::int64_t> starts,
                             View<const std::int32_t> lengths, View<const std::int64_t> order,
                             std::int32_t end_of_document, View<std::int32_t> out) {
    if (starts.size != lengths.size) {
        throw std::out_of_range("gather_documents: " + std::to_string(starts.size) + " starts but " +
                                std::to_string(lengths.size) + " lengths");
    }
    const Spools all(spools);
    std::size_t needed = 0;
    std::vector<const std::int32_t*> places;
    places.reserve(order.size);
    for (const std::int64_t document : order) {
        if (document < 0 || document >= static_cast<std::int64_t>(starts.size)) {
            throw std::out_of_range("gather_documents: order names document " + std::to_string(document) + " of " +
                                    std::to_string(starts.size));
        }
        const auto index = static_cast<std::size_t>(document);
        const std::int32_t* const place = all.find(starts[index], lengths[index]);
        if (place == nullptr) {
            throw std::out_of_range("gather_documents: document " + std::to_string(document) + " with start " +
                                    std::to_string(starts[index]) + " and length " + std::to_string(lengths[index]) +
                                    " leaves its spool, " + std::to_string(all.size()) + " tokens in " +
                                    std::to_string(spools.size()) + " spools");
        }
        places.push_back(place);
        needed += static_cast<std::size_t>(lengths[index]) + 1;
    }
    if (needed > out.size) {
        throw std::out_of_range("gather_documents: " + std::to_string(needed) + " tokens do not fit into " +
                                std::to_string(out.size));
    }
    std::int32_t* position = out.data;
    for (std::size_t i = 0; i < order.size; ++i) {
        position = std::copy_n(places[i], lengths[static_cast<std::size_t>(order[i])], position);
        *position++ = end_of_document;
    }
    return needed;
}

}  // namespace qwen_data
