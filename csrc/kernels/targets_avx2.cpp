// For x86-64 processors with AVX2 and FMA.
#include "targets.h"

#if defined(__x86_64__)
// What has functions of its own comes before the instructions are chosen, so that those are the same everywhere.
#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "lanes_avx2.h"
#include "targets_inner.h"

namespace qwen_kernels {

const Target& avx2_target() {
    static constexpr Target kTarget = target<Eight>();
    return kTarget;
}

}  // namespace qwen_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
