// Objects that are expensive to make, handed from one call to the next.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace qwen_data {

// As many objects as there were ever users at a time.
template <typename T>
class SpareObjects {
  public:
    // Calls use(object) with an object that nobody else has meanwhile. One during whose use an exception came is not used
    // again.
    template <typename Use>
    auto with_one(const Use& use) {
        std::unique_ptr<T> one = take();
        auto result = use(*one);
        const std::lock_guard<std::mutex> lock(mutex_);
        spare_.push_back(std::move(one));
        return result;
    }

  private:
    std::unique_ptr<T> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (spare_.empty()) {
            return std::make_unique<T>();
        }
        std::unique_ptr<T> one = std::move(spare_.back());
        spare_.pop_back();
        return one;
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<T>> spare_;
};

}  // namespace qwen_data
