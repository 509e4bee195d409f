// AVX-512 (F, BW, DQ, VL, VNNI): one register is one panel width. Needs -mavx512f -mavx512bw -mavx512dq -mavx512vl
// -mavx512vnni.
#pragma once

#include <immintrin.h>

#include <cstdint>

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::simd {
namespace {

template <int n> struct Count { static constexpr int value = n; };
constexpr int kDirectRows = 10, kTilePanels = 2;  // what the registers hold
template <int bits> constexpr int kTileRows = 6;

struct F { __m512 v; };
struct I { __m512i v; };
struct B { __m512i v; };

inline F zeros() { return {_mm512_setzero_ps()}; }
inline F set(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline F load_some(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline void store_some(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
inline F load_f16(const std::uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F load_bf16(const std::uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F load_i8(const std::int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F load_u8(const std::uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline F larger(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }   // b where either is NaN
inline F smaller(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
inline F magnitude(F a) { return {_mm512_abs_ps(a.v)}; }
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }

inline I zeros_i() { return {_mm512_setzero_si512()}; }
inline I set_i(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I load_i(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i(std::int32_t* p, I x) { _mm512_storeu_si512(p, x.v); }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I larger(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I bits_of(F a) { return {_mm512_castps_si512(a.v)}; }
inline F float_of_bits(I a) { return {_mm512_castsi512_ps(a.v)}; }
template <int n> inline I shift_left(I a) { return {_mm512_slli_epi32(a.v, n)}; }
inline std::int32_t largest(I a) { return _mm512_reduce_max_epi32(a.v); }
inline std::int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
inline void store_as_i8(std::int8_t* p, I x) {                // values already within int8
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
inline void store_bf16(std::uint16_t* p, F x) {  // nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// Sixteen pairs of neighbouring bfloat16, a pair a lane.
inline I load_pairs(const std::uint16_t* p) { return {_mm512_loadu_si512(p)}; }
inline F low_bf16(I pairs) { return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs.v, 16))}; }
inline F high_bf16(I pairs) {
    return {_mm512_castsi512_ps(_mm512_and_si512(pairs.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline void transpose(I (&x)[16]) {  // lane j of register i to lane i of register j
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(x[i].v, x[i + 1].v);
        a[i + 1] = _mm512_unpackhi_epi32(x[i].v, x[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int j = 0; j < 4; ++j) {  // b[4 i + j], quarter q: lane 4 q + j of rows 4 i .. 4 i + 3
        a[j] = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        a[4 + j] = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        a[8 + j] = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        a[12 + j] = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        x[j].v = _mm512_shuffle_i32x4(a[j], a[8 + j], 0x88);
        x[4 + j].v = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0x88);
        x[8 + j].v = _mm512_shuffle_i32x4(a[j], a[8 + j], 0xdd);
        x[12 + j].v = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0xdd);
    }
}
constexpr int kSums = 24;  // accumulators (F) that leave registers for the operands of a product

// ---- sixteen rows of four bytes -------------------------------------------------------------------------------------

constexpr int kByteZero = 128;  // what `byte_operand` adds to a signed byte
inline B load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(void* p, B x) { _mm512_storeu_si512(p, x.v); }
inline B repeat4(const std::int8_t* p) {  // the same four activations for every row
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
}
inline B byte_operand(B a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(static_cast<char>(0x80)))}; }
inline I dot_small(I sum, B weights, B x) { return {_mm512_dpbusd_epi32(sum.v, weights.v, x.v)}; }  // weights 0..127
inline I dot_byte(I sum, B weights, B x) { return {_mm512_dpbusd_epi32(sum.v, weights.v, x.v)}; }  // byte_operand's
inline B low_nibbles(B a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline B high_nibbles(B a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// low | bits [at, at + width) of every byte of `high`, moved to bit 4
template <int at, int width> inline B with_high(B low, B high) {
    const __m512i moved = at <= 4 ? _mm512_slli_epi16(high.v, at <= 4 ? 4 - at : 0)
                                  : _mm512_srli_epi16(high.v, at > 4 ? at - 4 : 0);
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << width) - 1) << 4));
    return {_mm512_ternarylogic_epi32(low.v, moved, mask, 0xf8)};  // low | (moved & mask)
}
#include "whole_sums.inl"
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
}  // namespace pocketgem::simd
