#include "targets.h"

#include "targets_inner.h"

namespace qwen_kernels {

const Target& plain_target() {
    static constexpr Target kTarget = target<One>();
    return kTarget;
}

namespace {

const Target& chosen_target() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return avx2_target();
    }
#endif
    return plain_target();
}

}  // namespace

const Target& best_target() {
    static const Target& target = chosen_target();
    return target;
}

}  // namespace qwen_kernels
