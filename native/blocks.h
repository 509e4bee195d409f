// How one block of a file's weights comes apart: its numbers q as bytes, its scales and minimums as they stand.
//
// The layouts, drawn above each type as `field bytes | field bytes`, are those of ggml's block structs (ggml-common.h);
// pocketgem/checkpoint/dequant.py is the same page in torch. Nothing is rounded here: what the numbers mean is told in
// packed.h. A file has little-endian numbers at any address, so every wide number is read through memcpy.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "packed.h"

namespace pocketgem {

// The format of a stored type; null for a type that has none.
constexpr const Format* find_format(std::string_view type) {
    for (const Format& format : kFormats)
        if (type == format.type) return &format;
    return nullptr;
}

// Weights of one block in the file.
constexpr long block_size(const Format& format) { return format.super ? kSuper : kBlock; }

struct Block {
    alignas(64) std::uint8_t q[kSuper];  // [block_size]; where the format has 8 bits, the bits of a signed byte
    std::uint16_t scale;                 // a float16: the scale, or where the format is super the unit of `scales`
    std::uint16_t minimum;               // likewise of the minimums, where the format has them
    std::int8_t scales[16];              // super only: one for each group
    std::uint8_t minimums[16];           // likewise
};

namespace blocks {

inline std::uint16_t half_at(const std::uint8_t* from) {
    std::uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits;
}

// The `count` lowest fields of `bits` bits of `width` bytes: all first fields, then all second ones, ...
template <int bits, int count, int width>
inline void take_fields(const std::uint8_t* __restrict from, std::uint8_t* __restrict to) {
    for (int i = 0; i < count; ++i)
        for (int l = 0; l < width; ++l) to[width * i + l] = from[l] >> bits * i & ((1 << bits) - 1);
}

// The same fields, as bits `at` and up of numbers whose lower bits are there already.
template <int bits, int count, int width, int at>
inline void add_fields(const std::uint8_t* __restrict from, std::uint8_t* __restrict to) {
    for (int i = 0; i < count; ++i)
        for (int l = 0; l < width; ++l) to[width * i + l] |= (from[l] >> bits * i & ((1 << bits) - 1)) << at;
}

// Bit i of four bytes is bit 4 of number i.
inline void add_fifth_bits(const std::uint8_t* __restrict from, std::uint8_t* __restrict to) {
    for (int i = 0; i < 32; ++i) to[i] |= (from[i / 8] >> i % 8 & 1) << 4;
}

// Six-bit scales and minimums of eight groups in 12 bytes. Bytes 0..3 and 4..7 hold those of groups 0..3; their two top
// bits belong to groups 4..7, whose four low bits are the nibbles of bytes 8..11 (low: scale, high: minimum).
inline void unpack_scales_k(const std::uint8_t* from, Block& to) {
    for (int i = 0; i < 4; ++i) {
        const std::uint8_t scale = from[i], minimum = from[4 + i], rest = from[8 + i];
        to.scales[i] = static_cast<std::int8_t>(scale & 63);
        to.minimums[i] = minimum & 63;
        to.scales[4 + i] = static_cast<std::int8_t>((rest & 15) | (scale >> 2 & 48));
        to.minimums[4 + i] = (rest >> 4) | (minimum >> 2 & 48);
    }
}

// The sixteen steps of IQ4_NL and IQ4_XS, finer near zero.
constexpr std::int8_t kSteps[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline void nibbles_to_steps(std::uint8_t* q, int count) {
    for (int i = 0; i < count; ++i) q[i] = static_cast<std::uint8_t>(kSteps[q[i]]);
}

// d 2 | 16 bytes: weights 0..15 in the low nibbles, 16..31 in the high ones
struct Q4_0 {
    static constexpr Format format = *find_format("Q4_0");
    static constexpr long bytes = 18;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        take_fields<4, 2, 16>(from + 2, to.q);
    }
};

// d 2 | min 2 | 16 bytes as Q4_0
struct Q4_1 {
    static constexpr Format format = *find_format("Q4_1");
    static constexpr long bytes = 20;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        to.minimum = half_at(from + 2);
        take_fields<4, 2, 16>(from + 4, to.q);
    }
};

// d 2 | fifth bits 4 | 16 bytes as Q4_0
struct Q5_0 {
    static constexpr Format format = *find_format("Q5_0");
    static constexpr long bytes = 22;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        take_fields<4, 2, 16>(from + 6, to.q);
        add_fifth_bits(from + 2, to.q);
    }
};

// d 2 | min 2 | fifth bits 4 | 16 bytes as Q4_0
struct Q5_1 {
    static constexpr Format format = *find_format("Q5_1");
    static constexpr long bytes = 24;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        to.minimum = half_at(from + 2);
        take_fields<4, 2, 16>(from + 8, to.q);
        add_fifth_bits(from + 4, to.q);
    }
};

// d 2 | 32 signed bytes
struct Q8_0 {
    static constexpr Format format = *find_format("Q8_0");
    static constexpr long bytes = 34;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        std::memcpy(to.q, from + 2, 32);
    }
};

// scale (low) and min (high) nibbles of 16 groups 16 | two-bit weights 64 | d 2 | dmin 2
struct Q2_K {
    static constexpr Format format = *find_format("Q2_K");
    static constexpr long bytes = 84;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from + 80);
        to.minimum = half_at(from + 82);
        for (int g = 0; g < 16; ++g) {
            to.scales[g] = static_cast<std::int8_t>(from[g] & 15);
            to.minimums[g] = from[g] >> 4;
        }
        for (int part = 0; part < 2; ++part) take_fields<2, 4, 32>(from + 16 + 32 * part, to.q + 128 * part);
    }
};

// inverted third bits 32 (byte l, bit j: weight 32 j + l) | two-bit weights 64 | 16 six-bit scales 12 | d 2
struct Q3_K {
    static constexpr Format format = *find_format("Q3_K");
    static constexpr long bytes = 110;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from + 108);
        unpack_scales(from + 96, to.scales);
        for (int part = 0; part < 2; ++part) take_fields<2, 4, 32>(from + 32 + 32 * part, to.q + 128 * part);
        add_fields<1, 8, 32, 2>(from, to.q);  // set where nothing is to be taken off: so 4 is always taken off
    }
    // Four low bits in bytes 0..7, two high bits in bytes 8..11, less 32.
    static void unpack_scales(const std::uint8_t* from, std::int8_t* to) {
        std::uint8_t scales[16];
        take_fields<4, 2, 8>(from, scales);
        add_fields<2, 4, 4, 4>(from + 8, scales);
        for (int g = 0; g < 16; ++g) to[g] = static_cast<std::int8_t>(scales[g] - 32);
    }
};

// d 2 | dmin 2 | scales and mins 12 | nibbles 128: four groups of 32 bytes, low nibbles first
struct Q4_K {
    static constexpr Format format = *find_format("Q4_K");
    static constexpr long bytes = 144;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        to.minimum = half_at(from + 2);
        unpack_scales_k(from + 4, to);
        for (int part = 0; part < 4; ++part) take_fields<4, 2, 32>(from + 16 + 32 * part, to.q + 64 * part);
    }
};

// d 2 | dmin 2 | scales and mins 12 | fifth bits 32 (byte l, bit j: weight 32 j + l) | nibbles 128 as Q4_K
struct Q5_K {
    static constexpr Format format = *find_format("Q5_K");
    static constexpr long bytes = 176;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        to.minimum = half_at(from + 2);
        unpack_scales_k(from + 4, to);
        for (int part = 0; part < 4; ++part) take_fields<4, 2, 32>(from + 48 + 32 * part, to.q + 64 * part);
        add_fields<1, 8, 32, 4>(from + 16, to.q);
    }
};

// nibbles 128: two groups of 64 | two high bits 64: two groups of 32 | 16 signed scales 16 | d 2
struct Q6_K {
    static constexpr Format format = *find_format("Q6_K");
    static constexpr long bytes = 210;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from + 208);
        std::memcpy(to.scales, from + 192, 16);
        for (int part = 0; part < 2; ++part) {
            take_fields<4, 2, 64>(from + 64 * part, to.q + 128 * part);
            add_fields<2, 4, 32, 4>(from + 128 + 32 * part, to.q + 128 * part);
        }
    }
};

// d 2 | 16 bytes as Q4_0, each nibble an index of kSteps
struct IQ4_NL {
    static constexpr Format format = *find_format("IQ4_NL");
    static constexpr long bytes = 18;
    static void unpack(const std::uint8_t* from, Block& to) {
        Q4_0::unpack(from, to);
        nibbles_to_steps(to.q, 32);
    }
};

// d 2 | two high bits of 8 scales 2 | four low bits of 8 scales 4 | nibbles 128: eight groups of 16
struct IQ4_XS {
    static constexpr Format format = *find_format("IQ4_XS");
    static constexpr long bytes = 136;
    static void unpack(const std::uint8_t* from, Block& to) {
        to.scale = half_at(from);
        for (int g = 0; g < 8; ++g) {
            const int low = from[4 + g / 2] >> 4 * (g % 2) & 15, high = from[2 + g / 4] >> 2 * (g % 4) & 3;
            to.scales[g] = static_cast<std::int8_t>((low | high << 4) - 32);
        }
        for (int part = 0; part < 8; ++part) take_fields<4, 2, 16>(from + 8 + 16 * part, to.q + 32 * part);
        nibbles_to_steps(to.q, 256);
    }
};

template <typename... Types>
struct List {};
using All = List<Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS>;

}  // namespace blocks
}  // namespace pocketgem
