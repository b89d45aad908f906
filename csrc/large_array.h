// Memory for tables that are looked up at random.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace qwen_data {

// Allocates in pages of 2 MiB where the system has them: with those of 4 KiB, most of the time of a lookup goes into
// finding out where its page is.
template <typename T>
struct LargePages {
    using value_type = T;

    LargePages() = default;
    template <typename Other>
    LargePages(const LargePages<Other>&) {}

    T* allocate(std::size_t count) {
        const std::size_t num_bytes = (count * sizeof(T) + kPageBytes - 1) / kPageBytes * kPageBytes;
        void* const place = ::operator new(num_bytes, std::align_val_t{kPageBytes});
#if defined(__linux__)
        // Advice: where it is not taken, nothing but speed is lost.
        madvise(place, num_bytes, MADV_HUGEPAGE);
#endif
        return static_cast<T*>(place);
    }
    void deallocate(T* place, std::size_t) { ::operator delete(place, std::align_val_t{kPageBytes}); }

    bool operator==(const LargePages&) const { return true; }
    bool operator!=(const LargePages&) const { return false; }

  private:
    static constexpr std::size_t kPageBytes = std::size_t{1} << 21;
};

template <typename T>
using LargeArray = std::vector<T, LargePages<T>>;

}  // namespace qwen_data
