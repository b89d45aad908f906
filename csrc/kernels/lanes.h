// Numbers and vectors of floats that the inner loops are written with, for any set of instructions.
//
// `Lanes` is a vector of kCount floats: Value and the operations of `One` below. A file for a set of instructions chooses
// them first, then includes the inner loops; everything they consist of is in an unnamed namespace, so that no file gets
// another one's copy with instructions that the processor may not have.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qwen_kernels {
namespace {

// The value of a bf16, whose bits are the upper half of a float's.
inline float widened(std::uint16_t bits) {
    const std::uint32_t whole = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
}
inline float widened(float value) { return value; }

// To the nearest, ties to even; NaN stays NaN.
inline std::uint16_t bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7FFFFFFFU) > 0x7F800000U ? 0x7FC0U : rounded);
}

// One float at a time: for processors without wider vectors, and for what is left over of a row.
struct One {
    using Value = float;
    static constexpr std::size_t kCount = 1;
    static Value all(float value) { return value; }
    static Value load(const float* from) { return *from; }
    static Value load(const std::uint16_t* from) { return widened(*from); }
    static void store(float* to, Value value) { *to = value; }
    static void store(std::uint16_t* to, Value value) { *to = bf16(value); }
    static Value add(Value a, Value b) { return a + b; }
    static Value subtract(Value a, Value b) { return a - b; }
    static Value multiply(Value a, Value b) { return a * b; }
    static Value divide(Value a, Value b) { return a / b; }
    static Value multiply_add(Value a, Value b, Value c) { return a * b + c; }
    // Of a bound and a value; a value that is NaN stays it.
    static Value at_least(Value bound, Value value) { return value < bound ? bound : value; }
    static Value at_most(Value bound, Value value) { return value > bound ? bound : value; }
    static Value as_bf16(Value value) { return widened(bf16(value)); }
    // To the nearest whole number, and value * 2^whole for -126 <= whole <= 128.
    static Value whole(Value value) { return (value + 12582912.0F) - 12582912.0F; }
    static Value scaled(Value value, Value whole) {
        // Adding 1.5 * 2^23 leaves the number in the low bits, of whatever a NaN has there. Half of the power twice: 2^128
        // is no float.
        const float shifted = whole + 12582912.0F;
        std::int32_t power;
        std::memcpy(&power, &shifted, sizeof power);
        power -= 0x4B400000;
        const std::int32_t half = power >> 1;
        const std::uint32_t bits[2] = {static_cast<std::uint32_t>(half + 127) << 23,
                                       static_cast<std::uint32_t>(power - half + 127) << 23};
        float factors[2];
        std::memcpy(factors, bits, sizeof factors);
        return value * factors[0] * factors[1];
    }
    static float sum(Value value) { return value; }
    static float largest(Value value) { return value; }
};

// Rounded as a tensor of such numbers would.
template <typename Lanes>
inline typename Lanes::Value rounded(typename Lanes::Value value, const float*) {
    return value;
}
template <typename Lanes>
inline typename Lanes::Value rounded(typename Lanes::Value value, const std::uint16_t*) {
    return Lanes::as_bf16(value);
}

// Stores what a tensor of `Number` would hold; storing as bf16 rounds by itself.
template <typename Lanes, typename Number>
inline void keep(float* to, typename Lanes::Value value) {
    const Number* const kind = nullptr;
    Lanes::store(to, rounded<Lanes>(value, kind));
}
template <typename Lanes, typename Number>
inline void keep(std::uint16_t* to, typename Lanes::Value value) {
    Lanes::store(to, value);
}

// e^x to 2 units in the last place; 0 below -87, infinity above 88.
template <typename Lanes>
inline typename Lanes::Value exponential(typename Lanes::Value x) {
    const auto clamped = Lanes::at_most(Lanes::all(88.7F), Lanes::at_least(Lanes::all(-87.3F), x));
    const auto whole = Lanes::whole(Lanes::multiply(clamped, Lanes::all(1.44269504F)));
    auto rest = Lanes::multiply_add(whole, Lanes::all(-0.693359375F), clamped);
    rest = Lanes::multiply_add(whole, Lanes::all(2.12194440e-4F), rest);
    auto series = Lanes::all(1.0F / 5040.0F);
    constexpr float kFactors[] = {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F, 0.5F, 1.0F, 1.0F};
    for (const float factor : kFactors) {
        series = Lanes::multiply_add(series, rest, Lanes::all(factor));
    }
    return Lanes::scaled(series, whole);
}

}  // namespace
}  // namespace qwen_kernels
