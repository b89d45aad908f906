#include "attention.h"

#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "targets.h"

namespace qwen_kernels {

template <typename Number>
void attention(const Number* queries, const Number* keys, const Number* values, Number* out, const Texts& texts,
               int threads) {
    const auto& passes = best_target().of(queries);
    const std::size_t each = passes.attend_scratch(texts.queries, texts.size), width = texts.queries * texts.size;
    std::vector<float> scratch(static_cast<std::size_t>(threads) * each);
    const auto parts = static_cast<std::ptrdiff_t>(texts.rows * texts.groups);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && parts > 1)
    for (std::ptrdiff_t part = 0; part < parts; ++part) {
        const std::size_t number = static_cast<std::size_t>(part), row = number / texts.groups;
        const std::size_t place = row * texts.row_step + number % texts.groups * texts.group_step;
        const std::size_t last = texts.lengths[row];
        const std::size_t first = texts.window == 0 || texts.window > last ? 0 : last - texts.window;
#ifdef _OPENMP
        float* const own = scratch.data() + static_cast<std::size_t>(omp_get_thread_num()) * each;
#else
        float* const own = scratch.data();
#endif
        passes.attend(queries + number * width, keys + place, values + place, out + number * width, texts.queries,
                      texts.size, first, last, texts.scale, own);
    }
}

template void attention(const float*, const float*, const float*, float*, const Texts&, int);
template void attention(const std::uint16_t*, const std::uint16_t*, const std::uint16_t*, std::uint16_t*, const Texts&,
                        int);

}  // namespace qwen_kernels
