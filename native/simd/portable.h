// Plain C++: any processor, any compiler. Loops of sixteen that a compiler may turn into what it has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::simd {
namespace {

template <int n> struct Count { static constexpr int value = n; };
constexpr int kDirectRows = 4, kTilePanels = 1;  // what the registers hold
template <int bits> constexpr int kTileRows = 2;

struct F { float v[16]; };
struct I { std::int32_t v[16]; };
struct B { std::uint8_t v[64]; };

template <typename Out, typename Each> inline Out lanes(Each each) {
    Out out;
    for (int i = 0; i < 16; ++i) out.v[i] = each(i);
    return out;
}

inline float float_from(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline std::uint32_t bits_from(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float widen_f16(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return float_from(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
    if (rest >= 0x0400u) return float_from(sign | ((rest << 13) + 0x38000000u));
    const float small = static_cast<float>(rest) * 0x1p-24f;  // subnormal: exact
    return sign ? -small : small;
}

inline F zeros() { return lanes<F>([](int) { return 0.0f; }); }
inline F set(float x) { return lanes<F>([=](int) { return x; }); }
inline F load(const float* p) { return lanes<F>([=](int i) { return p[i]; }); }
inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
inline F load_some(const float* p, int n) { return lanes<F>([=](int i) { return i < n ? p[i] : 0.0f; }); }
inline void store_some(float* p, F x, int n) { std::memcpy(p, x.v, 4 * static_cast<std::size_t>(n < 16 ? n : 16)); }
inline F load_f16(const std::uint16_t* p) { return lanes<F>([=](int i) { return widen_f16(p[i]); }); }
inline F load_bf16(const std::uint16_t* p) {
    return lanes<F>([=](int i) { return float_from(static_cast<std::uint32_t>(p[i]) << 16); });
}
inline F load_i8(const std::int8_t* p) { return lanes<F>([=](int i) { return static_cast<float>(p[i]); }); }
inline F load_u8(const std::uint8_t* p) { return lanes<F>([=](int i) { return static_cast<float>(p[i]); }); }
inline F operator+(F a, F b) { return lanes<F>([&](int i) { return a.v[i] + b.v[i]; }); }
inline F operator-(F a, F b) { return lanes<F>([&](int i) { return a.v[i] - b.v[i]; }); }
inline F operator*(F a, F b) { return lanes<F>([&](int i) { return a.v[i] * b.v[i]; }); }
inline F operator/(F a, F b) { return lanes<F>([&](int i) { return a.v[i] / b.v[i]; }); }
inline F fma(F a, F b, F c) { return lanes<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F larger(F a, F b) { return lanes<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F smaller(F a, F b) { return lanes<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F magnitude(F a) { return lanes<F>([&](int i) { return std::fabs(a.v[i]); }); }
inline float sum(F a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    return a.v[0];
}
inline float largest(F a) {
    float most = a.v[0];
    for (int i = 1; i < 16; ++i) most = most > a.v[i] ? most : a.v[i];
    return most;
}

inline I zeros_i() { return lanes<I>([](int) { return 0; }); }
inline I set_i(std::int32_t x) { return lanes<I>([=](int) { return x; }); }
inline I load_i(const std::int32_t* p) { return lanes<I>([=](int i) { return p[i]; }); }
inline void store_i(std::int32_t* p, I x) { std::memcpy(p, x.v, sizeof x.v); }
inline I operator+(I a, I b) { return lanes<I>([&](int i) { return a.v[i] + b.v[i]; }); }
inline I larger(I a, I b) { return lanes<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline I bits_of(F a) { return lanes<I>([&](int i) { return static_cast<std::int32_t>(bits_from(a.v[i])); }); }
inline F float_of_bits(I a) { return lanes<F>([&](int i) { return float_from(static_cast<std::uint32_t>(a.v[i])); }); }
template <int n> inline I shift_left(I a) {
    return lanes<I>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) << n); });
}
inline std::int32_t largest(I a) {
    std::int32_t most = a.v[0];
    for (int i = 1; i < 16; ++i) most = most > a.v[i] ? most : a.v[i];
    return most;
}
inline std::int32_t sum(I a) {
    std::int32_t all = 0;
    for (int i = 0; i < 16; ++i) all += a.v[i];
    return all;
}
inline F to_float(I a) { return lanes<F>([&](int i) { return static_cast<float>(a.v[i]); }); }
inline I to_int(F a) { return lanes<I>([&](int i) { return static_cast<std::int32_t>(std::nearbyint(a.v[i])); }); }
inline void store_as_i8(std::int8_t* p, I x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(x.v[i]);
}
inline void store_bf16(std::uint16_t* p, F x) {  // nearest even; NaN stays NaN
    for (int i = 0; i < 16; ++i) {
        const std::uint32_t bits = bits_from(x.v[i]);
        const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        p[i] = static_cast<std::uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

// Sixteen pairs of neighbouring bfloat16, a pair a lane.
inline I load_pairs(const std::uint16_t* p) {
    return lanes<I>([=](int i) {
        return static_cast<std::int32_t>(p[2 * i] | static_cast<std::uint32_t>(p[2 * i + 1]) << 16);
    });
}
inline F low_bf16(I x) { return float_of_bits(shift_left<16>(x)); }
inline F high_bf16(I x) {
    return lanes<F>([&](int i) { return float_from(static_cast<std::uint32_t>(x.v[i]) & 0xffff0000u); });
}
inline void transpose(I (&x)[16]) {  // lane j of register i to lane i of register j
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < i; ++j) {
            const std::int32_t kept = x[i].v[j];
            x[i].v[j] = x[j].v[i], x[j].v[i] = kept;
        }
}
constexpr int kSums = 6;  // accumulators (F) that leave registers for the operands of a product

// ---- sixteen rows of four bytes -------------------------------------------------------------------------------------

constexpr int kByteZero = 0;
inline B load_bytes(const void* p) {
    B x;
    std::memcpy(x.v, p, 64);
    return x;
}
inline void store_bytes(void* p, B x) { std::memcpy(p, x.v, 64); }
inline B repeat4(const std::int8_t* p) {
    B x;
    for (int i = 0; i < 64; ++i) x.v[i] = static_cast<std::uint8_t>(p[i % 4]);
    return x;
}
inline B byte_operand(B a) { return a; }
inline I dot_byte(I s, B w, B x) {
    for (int i = 0; i < 16; ++i)
        for (int b = 4 * i; b < 4 * i + 4; ++b)
            s.v[i] += static_cast<std::int8_t>(w.v[b]) * static_cast<std::int8_t>(x.v[b]);
    return s;
}
inline I dot_small(I s, B w, B x) { return dot_byte(s, w, x); }
inline B low_nibbles(B a) {
    for (auto& byte : a.v) byte &= 15;
    return a;
}
inline B high_nibbles(B a) {
    for (auto& byte : a.v) byte >>= 4;
    return a;
}
template <int at, int width> inline B with_high(B low, B high) {
    for (int i = 0; i < 64; ++i) low.v[i] |= static_cast<std::uint8_t>((high.v[i] >> at & ((1 << width) - 1)) << 4);
    return low;
}
#include "whole_sums.inl"
inline void prefetch(const void*) {}

}  // namespace
}  // namespace pocketgem::simd
