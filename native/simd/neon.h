// AArch64: a panel is four registers. The compiler's macro chooses the products of bytes: SDOT from Armv8.2 on,
// multiplied and added in pairs before it.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::simd {
namespace {

template <int n> struct Count { static constexpr int value = n; };
constexpr int kDirectRows = 4, kTilePanels = 1;  // what the registers hold
template <int bits> constexpr int kTileRows = 3;

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct B { uint8x16_t v[4]; };

template <typename Out, typename Each> inline Out quarters(const Each& each) {
    return {{each(0), each(1), each(2), each(3)}};
}

inline F zeros() { return quarters<F>([](int) { return vdupq_n_f32(0.0f); }); }
inline F set(float x) { return quarters<F>([=](int) { return vdupq_n_f32(x); }); }
inline F load(const float* p) { return quarters<F>([=](int i) { return vld1q_f32(p + 4 * i); }); }
inline void store(float* p, F x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F load_some(const float* p, int n) {  // zeros from n on
    float some[16] = {};
    for (int i = 0; i < n; ++i) some[i] = p[i];
    return load(some);
}
inline void store_some(float* p, F x, int n) {
    float some[16];
    store(some, x);
    for (int i = 0; i < n && i < 16; ++i) p[i] = some[i];
}
inline F load_f16(const std::uint16_t* p) {
    return quarters<F>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline F load_bf16(const std::uint16_t* p) {
    return quarters<F>([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline F load_i8(const std::int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
inline F load_u8(const std::uint8_t* p) {
    const uint8x16_t x = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_high_u8(x);
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}};
}
inline F operator+(F a, F b) { return quarters<F>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
inline F operator-(F a, F b) { return quarters<F>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
inline F operator*(F a, F b) { return quarters<F>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
inline F operator/(F a, F b) { return quarters<F>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
inline F fma(F a, F b, F c) {  // a * b + c
    return quarters<F>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// b where either is NaN, as on the other processors: FMAX would give the NaN and FMAXNM the number.
inline F larger(F a, F b) {
    return quarters<F>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline F smaller(F a, F b) {
    return quarters<F>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline F magnitude(F a) { return quarters<F>([&](int i) { return vabsq_f32(a.v[i]); }); }
inline float sum(F a) {  // halves to halves, in the other processors' order
    const float32x4_t t = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    return vpadds_f32(vadd_f32(vget_low_f32(t), vget_high_f32(t)));
}
inline float largest(F a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}

inline I zeros_i() { return quarters<I>([](int) { return vdupq_n_s32(0); }); }
inline I set_i(std::int32_t x) { return quarters<I>([=](int) { return vdupq_n_s32(x); }); }
inline I load_i(const std::int32_t* p) { return quarters<I>([=](int i) { return vld1q_s32(p + 4 * i); }); }
inline void store_i(std::int32_t* p, I x) {
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, x.v[i]);
}
inline I operator+(I a, I b) { return quarters<I>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); }); }
inline I larger(I a, I b) { return quarters<I>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); }); }
inline I bits_of(F a) { return quarters<I>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); }); }
inline F float_of_bits(I a) { return quarters<F>([&](int i) { return vreinterpretq_f32_s32(a.v[i]); }); }
template <int n> inline I shift_left(I a) { return quarters<I>([&](int i) { return vshlq_n_s32(a.v[i], n); }); }
inline std::int32_t largest(I a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
inline std::int32_t sum(I a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
inline F to_float(I a) { return quarters<F>([&](int i) { return vcvtq_f32_s32(a.v[i]); }); }
inline I to_int(F a) { return quarters<I>([&](int i) { return vcvtnq_s32_f32(a.v[i]); }); }  // nearest, ties to even
inline void store_as_i8(std::int8_t* p, I x) {  // values already within int8
    const int16x8_t low = vmovn_high_s32(vmovn_s32(x.v[0]), x.v[1]), high = vmovn_high_s32(vmovn_s32(x.v[2]), x.v[3]);
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
}
inline uint16x4_t narrow_bf16(float32x4_t x) {  // nearest even; NaN stays NaN
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}
inline void store_bf16(std::uint16_t* p, F x) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, narrow_bf16(x.v[i]));
}

// Sixteen pairs of neighbouring bfloat16, a pair a lane.
inline I load_pairs(const std::uint16_t* p) {
    return quarters<I>([=](int i) { return vreinterpretq_s32_u16(vld1q_u16(p + 8 * i)); });
}
inline F low_bf16(I pairs) { return float_of_bits(shift_left<16>(pairs)); }
inline F high_bf16(I pairs) {
    const int32x4_t mask = vdupq_n_s32(static_cast<std::int32_t>(0xffff0000u));
    return quarters<F>([&](int i) { return vreinterpretq_f32_s32(vandq_s32(pairs.v[i], mask)); });
}
inline void transpose4(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d, int32x4_t (&out)[4]) {
    const auto wide = [](int32x4_t x) { return vreinterpretq_s64_s32(x); };
    const auto even = [&](int32x4_t x, int32x4_t y) { return vreinterpretq_s32_s64(vtrn1q_s64(wide(x), wide(y))); };
    const auto odd = [&](int32x4_t x, int32x4_t y) { return vreinterpretq_s32_s64(vtrn2q_s64(wide(x), wide(y))); };
    const int32x4_t ab = vtrn1q_s32(a, b), ab2 = vtrn2q_s32(a, b), cd = vtrn1q_s32(c, d), cd2 = vtrn2q_s32(c, d);
    out[0] = even(ab, cd), out[1] = even(ab2, cd2), out[2] = odd(ab, cd), out[3] = odd(ab2, cd2);
}
inline void transpose(I (&x)[16]) {  // lane j of register i to lane i of register j
    I out[16];
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            int32x4_t square[4];
            transpose4(x[4 * i].v[j], x[4 * i + 1].v[j], x[4 * i + 2].v[j], x[4 * i + 3].v[j], square);
            for (int k = 0; k < 4; ++k) out[4 * j + k].v[i] = square[k];
        }
    for (int i = 0; i < 16; ++i) x[i] = out[i];
}
constexpr int kSums = 6;  // accumulators (F) that leave registers for the operands of a product

// ---- sixteen rows of four bytes -------------------------------------------------------------------------------------

constexpr int kByteZero = 0;  // products of bytes are signed here
inline B load_bytes(const void* p) {
    return quarters<B>([=](int i) { return vld1q_u8(static_cast<const std::uint8_t*>(p) + 16 * i); });
}
inline void store_bytes(void* p, B x) {
    for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<std::uint8_t*>(p) + 16 * i, x.v[i]);
}
inline B repeat4(const std::int8_t* p) {  // the same four activations for every row
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return quarters<B>([=](int) { return vreinterpretq_u8_s32(vdupq_n_s32(four)); });
}
inline B byte_operand(B a) { return a; }
inline B low_nibbles(B a) { return quarters<B>([&](int i) { return vandq_u8(a.v[i], vdupq_n_u8(15)); }); }
inline B high_nibbles(B a) { return quarters<B>([&](int i) { return vshrq_n_u8(a.v[i], 4); }); }
// low | bits [at, at + width) of every byte of `high`, moved to bit 4
template <int at, int width> inline B with_high(B low, B high) {
    const uint8x16_t mask = vdupq_n_u8(((1 << width) - 1) << 4);
    return quarters<B>([&](int i) {
        uint8x16_t moved = high.v[i];
        if constexpr (at < 4) moved = vshlq_n_u8(moved, 4 - at);
        if constexpr (at > 4) moved = vshrq_n_u8(moved, at - 4);
        return vbslq_u8(mask, moved, low.v[i]);
    });
}

inline int32x4_t add_dots(int32x4_t s, uint8x16_t weights, uint8x16_t x) {
    const int8x16_t w = vreinterpretq_s8_u8(weights), a = vreinterpretq_s8_u8(x);
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(s, w, a);
#else
    // Two products fit int16: 2 * 128 * 127 = 32,512.
    return vpadalq_s16(s, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a)));
#endif
}
inline I dot_byte(I s, B w, B x) { return quarters<I>([&](int i) { return add_dots(s.v[i], w.v[i], x.v[i]); }); }
inline I dot_small(I s, B w, B x) { return dot_byte(s, w, x); }  // 0..127 are signed bytes too
#include "whole_sums.inl"
inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace
}  // namespace pocketgem::simd
