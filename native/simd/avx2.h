// AVX2 with FMA and F16C, and VNNI where the compiler is told so (-mavxvnni): a panel is two registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::simd {
namespace {

template <int n> struct Count { static constexpr int value = n; };
constexpr int kDirectRows = 4, kTilePanels = 1;  // what the registers hold
#ifdef __AVXVNNI__
template <int bits> constexpr int kTileRows = 3;
#else
template <int bits> constexpr int kTileRows = bits == 4 ? 6 : bits == 8 ? 3 : 4;  // sums of 16 bits take fewer
#endif

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct B { __m256i a, b; };

inline const __m256i* at256(const void* p) { return static_cast<const __m256i*>(p); }
inline __m256i load256(const void* p) { return _mm256_loadu_si256(at256(p)); }

inline F zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline __m256i first(int n) {  // lanes below n
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load_some(const float* p, int n) {
    return {_mm256_maskload_ps(p, first(n)), n > 8 ? _mm256_maskload_ps(p + 8, first(n - 8)) : _mm256_setzero_ps()};
}
inline void store_some(float* p, F x, int n) {
    _mm256_maskstore_ps(p, first(n), x.a);
    if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), x.b);
}
inline F load_f16(const std::uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline __m256 widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F load_bf16(const std::uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {widen_bf16(_mm_loadu_si128(q)), widen_bf16(_mm_loadu_si128(q + 1))};
}
inline F load_i8(const std::int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline F load_u8(const std::uint8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F larger(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F smaller(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F magnitude(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(F x) {
    const __m256 t = _mm256_add_ps(x.a, x.b);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(F x) {
    const __m256 t = _mm256_max_ps(x.a, x.b);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline I zeros_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I set_i(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I load_i(const std::int32_t* p) { return {load256(p), load256(p + 8)}; }
inline void store_i(std::int32_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I larger(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline I bits_of(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline F float_of_bits(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
template <int n> inline I shift_left(I x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
inline std::int32_t largest(I x) {
    const __m256i t = _mm256_max_epi32(x.a, x.b);
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline std::int32_t sum(I x) {
    const __m256i t = _mm256_add_epi32(x.a, x.b);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline void store_as_i8(std::int8_t* p, I x) {
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline __m128i narrow_bf16(__m256 x) {  // nearest even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0xd8);
    return _mm256_castsi256_si128(packed);
}
inline void store_bf16(std::uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(x.a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), narrow_bf16(x.b));
}

// Sixteen pairs of neighbouring bfloat16, a pair a lane.
inline I load_pairs(const std::uint16_t* p) { return {load256(p), load256(p + 16)}; }
inline F low_bf16(I x) { return float_of_bits(shift_left<16>(x)); }
inline F high_bf16(I x) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return float_of_bits({_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)});
}
inline void transpose8(const __m256i (&x)[8], __m256i (&out)[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int j = 0; j < 4; ++j) {
        out[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
        out[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
    }
}
inline void transpose(I (&x)[16]) {  // lane j of register i to lane i of register j
    __m256i in[8], out[4][8];        // quarters: rows 0..7 left, right, rows 8..15 left, right
    for (int quarter = 0; quarter < 4; ++quarter) {
        for (int i = 0; i < 8; ++i) in[i] = quarter % 2 ? x[quarter / 2 * 8 + i].b : x[quarter / 2 * 8 + i].a;
        transpose8(in, out[quarter]);
    }
    for (int i = 0; i < 8; ++i) {
        x[i] = {out[0][i], out[2][i]};
        x[8 + i] = {out[1][i], out[3][i]};
    }
}
constexpr int kSums = 6;  // accumulators (F) that leave registers for the operands of a product

// ---- sixteen rows of four bytes -------------------------------------------------------------------------------------

inline B load_bytes(const void* p) { return {load256(p), load256(static_cast<const char*>(p) + 32)}; }
inline void store_bytes(void* p, B x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
inline B repeat4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
inline B low_nibbles(B x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline B high_nibbles(B x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
template <int at, int width> inline __m256i moved_high(__m256i high) {
    const __m256i moved =
        at <= 4 ? _mm256_slli_epi16(high, at <= 4 ? 4 - at : 0) : _mm256_srli_epi16(high, at > 4 ? at - 4 : 0);
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(((1 << width) - 1) << 4)));
}
template <int at, int width> inline B with_high(B low, B high) {
    return {_mm256_or_si256(low.a, moved_high<at, width>(high.a)),
            _mm256_or_si256(low.b, moved_high<at, width>(high.b))};
}

#ifdef __AVXVNNI__
constexpr int kByteZero = 128;
inline B byte_operand(B x) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    return {_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
}
inline I dot_small(I s, B w, B x) {
    return {_mm256_dpbusd_avx_epi32(s.a, w.a, x.a), _mm256_dpbusd_avx_epi32(s.b, w.b, x.b)};
}
inline I dot_byte(I s, B w, B x) { return dot_small(s, w, x); }
#include "whole_sums.inl"
#else
// Two products of a pair fit int16 only while weights stay below 128 (63 * 127 * 2 = 16,002), so whole bytes go through
// their magnitude with the sign moved to the activation: 128 * 127 * 2 = 32,512.
constexpr int kByteZero = 0;
inline B byte_operand(B x) { return x; }
inline __m256i add_dots(__m256i s, __m256i u, __m256i x) {
    return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)));
}
inline I dot_small(I s, B w, B x) { return {add_dots(s.a, w.a, x.a), add_dots(s.b, w.b, x.b)}; }
inline I dot_byte(I s, B w, B x) {
    return {add_dots(s.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(x.a, w.a)),
            add_dots(s.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(x.b, w.b))};
}
// Smaller weights leave room to add products of 2^(8 - bits) / 2 registers before they are widened: of 4 bits eight,
// 8 * 15 * 127 * 2 = 30,480.
struct Short { __m256i a, b; };
inline Short no_sum() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
template <int bits> constexpr int kRun = bits == 8 ? 1 : 1 << (7 - bits);
inline Short multiply(B w, B x) { return {_mm256_maddubs_epi16(w.a, x.a), _mm256_maddubs_epi16(w.b, x.b)}; }
inline Short operator+(Short x, Short y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
inline I widen_add(I sum, Short x) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.a, ones)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.b, ones))};
}
#endif
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
}  // namespace pocketgem::simd
