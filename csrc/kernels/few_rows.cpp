#include "few_rows.h"

#include "few_rows_inner.h"
#include "few_rows_targets.h"

namespace qwen_kernels {
namespace {

// Rows of the matrix that a thread takes at once: some hundred kilobytes, enough to hide the handing out.
constexpr std::size_t kBytesAtOnce = std::size_t{1} << 18;

// One float at a time, for processors without wider vectors.
struct One {
    using Value = float;
    static constexpr std::size_t kCount = 1;
    static Value zero() { return 0.0F; }
    static Value load(const float* from) { return *from; }
    static Value load(const std::uint16_t* from) { return widened(*from); }
    static Value multiply_add(Value a, Value b, Value c) { return a * b + c; }
    static float sum(Value value) { return value; }
};

void few_rows_plain(const Task& task, std::size_t first, std::size_t last) {
    if (task.stored == Stored::fp32) {
        stripes<One>(task.rows, static_cast<const float*>(task.matrix), task.out, task.count, task.height, task.width,
                     first, last);
    } else {
        stripes<One>(task.rows, static_cast<const std::uint16_t*>(task.matrix), task.out, task.count, task.height,
                     task.width, first, last);
    }
}

using Target = void (*)(const Task&, std::size_t, std::size_t);

Target chosen_target() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return few_rows_avx2;
    }
#endif
    return few_rows_plain;
}

}  // namespace

void few_rows(const float* rows, const void* matrix, Stored stored, float* out, std::size_t count, std::size_t height,
              std::size_t width, int threads) {
    static const Target target = chosen_target();
    const Task task{rows, matrix, stored, out, count, height, width};
    const std::size_t row_bytes = width * (stored == Stored::fp32 ? 4 : 2);
    const std::size_t step = row_bytes == 0 ? height : kBytesAtOnce / row_bytes / 4 * 4 + 4;
    const auto blocks = static_cast<std::ptrdiff_t>((height + step - 1) / step);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && blocks > 1)
    for (std::ptrdiff_t block = 0; block < blocks; ++block) {
        const std::size_t first = static_cast<std::size_t>(block) * step;
        target(task, first, first + step < height ? first + step : height);
    }
}

bool is_fast() { return chosen_target() != few_rows_plain; }

}  // namespace qwen_kernels
