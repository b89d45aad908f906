#include "few_rows.h"

#include "few_rows_inner.h"
#include "targets.h"

namespace qwen_kernels {
namespace {

// Of the matrix a thread takes so much at once: some hundred kilobytes, enough to hide the handing out.
constexpr std::size_t kBytesAtOnce = std::size_t{1} << 18;

}  // namespace

template <typename Number>
void few_rows(const float* rows, const Number* matrix, float* out, std::size_t count, std::size_t height,
              std::size_t width, int threads) {
    const auto products = best_target().of(matrix).products;
    const std::size_t row_bytes = width * sizeof(Number);
    const std::size_t step =
        row_bytes == 0 ? height : kBytesAtOnce / row_bytes / kHeightAtOnce * kHeightAtOnce + kHeightAtOnce;
    const auto blocks = static_cast<std::ptrdiff_t>((height + step - 1) / step);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && blocks > 1)
    for (std::ptrdiff_t block = 0; block < blocks; ++block) {
        const std::size_t first = static_cast<std::size_t>(block) * step;
        products(rows, matrix, out, count, height, width, first, first + step < height ? first + step : height);
    }
}

template void few_rows(const float*, const float*, float*, std::size_t, std::size_t, std::size_t, int);
template void few_rows(const float*, const std::uint16_t*, float*, std::size_t, std::size_t, std::size_t, int);

bool is_fast() { return &best_target() != &plain_target(); }

}  // namespace qwen_kernels
