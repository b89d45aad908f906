#include "activations.h"

#include "targets.h"

namespace qwen_kernels {
namespace {

// Numbers of a pass that are worth a thread.
constexpr std::size_t kNumbersOfAThread = std::size_t{1} << 15;

// Threads for so many rows of a width.
int threads_for(std::size_t count, std::size_t width, int most) {
    const std::size_t worth = count * width / kNumbersOfAThread + 1;
    return worth < static_cast<std::size_t>(most) ? static_cast<int>(worth) : most;
}

}  // namespace

template <typename Number>
void rms_norm(const Number* in, const Number* weight, Number* out, std::size_t count, std::size_t width, float eps,
              int threads) {
    const int used = threads_for(count, width, threads);
    const auto norm = best_target().of(in).norm;
    const auto rows = static_cast<std::ptrdiff_t>(count);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        norm(in + row * width, weight, out + row * width, width, eps);
    }
}

template <typename Number>
void gate(const Number* in, Number* out, std::size_t count, std::size_t width, int threads) {
    const int used = threads_for(count, width, threads);
    const auto one = best_target().of(in).gate;
    const auto rows = static_cast<std::ptrdiff_t>(count);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        one(in + 2 * row * width, out + row * width, width);
    }
}

template <typename Number>
void rotate(const Number* in, const float* cosines, const float* sines, Number* out, const Heads& heads, int threads) {
    const std::size_t width = heads.heads * heads.size;
    const int used = threads_for(heads.sequence * heads.batch, width, threads);
    const auto one = best_target().of(in).rotate;
    const auto tokens = static_cast<std::ptrdiff_t>(heads.sequence * heads.batch);
#pragma omp parallel for num_threads(used) if (used > 1)
    for (std::ptrdiff_t token = 0; token < tokens; ++token) {
        const std::size_t place = static_cast<std::size_t>(token) / heads.batch;
        const std::size_t row = static_cast<std::size_t>(token) % heads.batch;
        const std::size_t angles = place * heads.angle_step + row * heads.angle_batch_step;
        const Number* from = in + place * heads.sequence_step + row * heads.batch_step;
        Number* to = out + token * width;
        for (std::size_t head = 0; head < heads.heads; ++head, from += heads.head_step, to += heads.size) {
            one(from, cosines + angles, sines + angles, to, heads.size);
        }
    }
}

template void rms_norm(const float*, const float*, float*, std::size_t, std::size_t, float, int);
template void rms_norm(const std::uint16_t*, const std::uint16_t*, std::uint16_t*, std::size_t, std::size_t, float,
                       int);
template void gate(const float*, float*, std::size_t, std::size_t, int);
template void gate(const std::uint16_t*, std::uint16_t*, std::size_t, std::size_t, int);
template void rotate(const float*, const float*, const float*, float*, const Heads&, int);
template void rotate(const std::uint16_t*, const float*, const float*, std::uint16_t*, const Heads&, int);

}  // namespace qwen_kernels
