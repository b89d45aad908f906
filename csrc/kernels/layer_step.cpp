#include "layer_step.h"

#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "layer_step_inner.h"
#include "targets.h"

namespace qwen_kernels {
namespace {

// Small enough that the last parts of a phase end at about the same time, large enough to be read as fast as memory gives.
constexpr std::size_t kPartBytes = std::size_t{1} << 17;

// How often a thread looks whether the others have come before it lets them have its core: they are microseconds behind.
constexpr int kLooks = 4000;

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

}  // namespace

std::size_t taken_part(LayerScratch& scratch, Phase phase) { return scratch.next[phase].fetch_add(1); }

void meet(LayerScratch& scratch, int threads) {
    const int round = scratch.round.load();
    if (scratch.arrived.fetch_add(1) + 1 == threads) {
        scratch.arrived.store(0);
        scratch.round.store(round + 1);
        return;
    }
    for (int looks = 0; scratch.round.load() == round; ++looks) {
        if (looks < kLooks) {
            pause_briefly();
        } else {
            std::this_thread::yield();
        }
    }
}

std::size_t part_height(std::size_t width, std::size_t number_bytes) {
    const std::size_t row_bytes = width * number_bytes;
    return (row_bytes == 0 ? 0 : kPartBytes / row_bytes / kHeightAtOnce * kHeightAtOnce) + kHeightAtOnce;
}

template <typename Number>
void layer_step(const LayerStep<Number>& step, int threads) {
    // Kept from layer to layer; as large as the largest that this thread has asked for.
    thread_local std::vector<float> floats;
    LayerScratch scratch;
    scratch.own_floats = own_floats(step);
    const std::size_t qkv = step.rows * step.qkv_width(), attended = step.rows * step.attended_width();
    const std::size_t residual = step.rows * step.hidden, activations = step.rows * step.ffn;
    const std::size_t needed =
        qkv + attended + residual + activations + static_cast<std::size_t>(threads) * scratch.own_floats;
    if (floats.size() < needed) {
        floats.resize(needed);
    }
    scratch.qkv = floats.data();
    scratch.attended = scratch.qkv + qkv;
    scratch.residual = scratch.attended + attended;
    scratch.activations = scratch.residual + residual;
    scratch.own = scratch.activations + activations;
    for (auto& next : scratch.next) {
        next.store(0);
    }
    const auto layer = best_target().of(static_cast<const Number*>(nullptr)).layer;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
    layer(step, scratch, omp_get_thread_num(), omp_get_num_threads());
#else
    layer(step, scratch, 0, 1);
#endif
}

template void layer_step(const LayerStep<float>&, int);
template void layer_step(const LayerStep<std::uint16_t>&, int);

}  // namespace qwen_kernels
