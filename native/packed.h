// How a weight matrix [rows, cols] lies in memory for the kernels.
//
// Sixteen output rows make a panel, and a panel is read from its first column to its last. Every number of a block type
// is
//     weight = scale * (q - zero) + minimum        q: unsigned of 4, 5, 6 bits, or signed of 8 (then zero is 0)
// with a scale (and minimum) for each row and group of 16 or 32 columns. Nothing is rounded: a file's block types
// differ only in which planes are there and in `zero`. Bits of a panel's 16 rows r and 32 columns k = 4 j + b lie in
// planes:
//
//   base, 4 bits  256 bytes a 32 columns: register i (0..3), byte 4 r + b; low nibble column 8 i + b, high 8 i + 4 + b
//   base, 8 bits  512 bytes:              register j (0..7), byte 4 r + b: column 4 j + b
//   high, 5 bits  64 bytes:   byte 4 r + b, bit j: bit 4 of column 4 j + b
//   high, 6 bits  128 bytes:  register i (0..1), byte 4 r + b, bits 2 t and 2 t + 1: bits 4 and 5 of column 16 i + 4 t
//   + b scale, half   16 float16 a group, one for each row          minimum, half   the same scale, super  16 int8 a
//   group, times `scale_unit`           minimum, super  16 uint8 a group, times -`minimum_unit` scale_unit,
//   minimum_unit   16 float16 for each 256 columns
//
// The planes of all panels follow one another: [plane][panel][column]. Each plane begins on 64 bytes. Rows past the end
// of the last panel have zeros in every plane.
#pragma once

#include <cstdint>

namespace pocketgem {

constexpr long kPanel = 16;   // rows of a panel
constexpr long kBlock = 32;   // columns the planes are cut into
constexpr long kSuper = 256;  // columns that share the units of a super-scaled format

struct Format {
    const char* type = nullptr;  // the stored type's name in the file; null for a matrix that is not packed
    int bits = 0;                // 4, 5, 6 or 8
    int group = 0;               // columns of one scale: 16 or 32
    bool super = false;          // scales are small integers times a unit
    bool minimum = false;
    int zero = 0;
};

constexpr Format kFormats[] = {
    {"Q4_0", 4, 32, false, false, 8}, {"Q4_1", 4, 32, false, true, 0},    {"Q5_0", 5, 32, false, false, 16},
    {"Q5_1", 5, 32, false, true, 0},  {"Q8_0", 8, 32, false, false, 0},   {"Q2_K", 4, 16, true, true, 0},
    {"Q3_K", 4, 16, true, false, 4},  {"Q4_K", 4, 32, true, true, 0},     {"Q5_K", 5, 32, true, true, 0},
    {"Q6_K", 6, 16, true, false, 32}, {"IQ4_NL", 8, 32, false, false, 0}, {"IQ4_XS", 8, 32, true, false, 0},
};

// Where one plane lies: byte `start` of the packed bytes, `stride` bytes a panel; stride 0: the format has none.
struct Plane {
    long start = 0, stride = 0;
};

struct Layout {
    Format format;
    long rows = 0, cols = 0, panels = 0;
    Plane base, high, scale, scale_unit, minimum, minimum_unit;
    long bytes = 0;
};

// cols must be a multiple of the stored type's block (32, or 256 where `super`).
inline Layout layout_of(const Format& format, long rows, long cols) {
    Layout all{format, rows, cols, (rows + kPanel - 1) / kPanel, {}, {}, {}, {}, {}, {}, 0};
    const auto place = [&all](long stride) {
        const Plane plane{all.bytes, stride};
        all.bytes += (all.panels * stride + 63) / 64 * 64;
        return plane;
    };
    const long blocks = cols / kBlock, groups = cols / format.group, supers = cols / kSuper;
    const long number = format.super ? 1 : 2;  // bytes of one scale or minimum
    all.base = place(blocks * (format.bits == 8 ? 512 : 256));
    if (format.bits == 5 || format.bits == 6) all.high = place(blocks * (format.bits == 5 ? 64 : 128));
    all.scale = place(groups * kPanel * number);
    if (format.super) all.scale_unit = place(supers * kPanel * 2);
    if (format.minimum) all.minimum = place(groups * kPanel * number);
    if (format.minimum && format.super) all.minimum_unit = place(supers * kPanel * 2);
    return all;
}

}  // namespace pocketgem
