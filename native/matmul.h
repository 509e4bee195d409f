// Weights times activations. Activations are quantised to int8 in groups of 32 columns, each with its own float scale;
// weights are what packed.h says, or plain numbers as the file has them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed.h"

namespace pocketgem {

// Rows of activations as the kernels read them. A group with an infinity or a NaN has a NaN scale: its row's results
// are NaN, nobody else's.
struct Activations {
    long rows = 0, cols = 0;
    std::int8_t* q = nullptr;        // [rows, cols]
    float* scale = nullptr;          // [rows, cols / 32]
    std::int32_t* sums16 = nullptr;  // [rows, cols / 16] sums of q
    std::int32_t* sums32 = nullptr;  // [rows, cols / 32]
};

// A tile of unpacked weights: `panels` panels side by side, ready for many rows.
struct Tile {
    std::uint8_t* q = nullptr;  // [cols / 4, panels, 64]; a set with a `tiled` of its own may order them anew
    float* scale = nullptr;     // [cols / group, panels, 16]
    float* minimum = nullptr;   // the same, where the format has minima
    long panels = 0;
};

// 32 columns of one row as `direct` reads them, with what the zero point and the minimum of up to two groups add: one
// line of the cache, so that whatever a product needs of several rows lies at distances known when it is compiled.
struct alignas(64) Record {
    std::int8_t q[kBlock];
    float scale;
    std::int32_t start[2];  // -zero * sum(q)
    float weight[2];        // scale * sum(q)
};

// Records of some rows, those of the same columns beside each other: [cols / 32, stride], of which the first are meant.
struct Records {
    Record* at = nullptr;
    long stride = 0;
};

// The same for many rows, beside their activations.
struct Corrections {
    const std::int32_t* start = nullptr;  // [rows, cols / group] -zero * sum(q)
    const float* weight = nullptr;        // [rows, cols / group] scale * sum(q)
};

// Rows of activations in 16 bits; as above, a group with an infinity or a NaN has a NaN scale.
struct Words {
    long rows = 0, cols = 0;
    std::int16_t* q = nullptr;  // [rows, cols]
    float* scale = nullptr;     // [rows, cols / 32]
};

struct MatmulKernels {
    // x [columns] -> row `row` of the activations, from `column` on; both are multiples of 32.
    void (*quantize)(const float* x, long columns, const Activations& to, long row, long column);

    // The same in two steps: what row `row` rounds away is quantised into row `rest`, and the two rows' products add up
    // to nearly those of 16-bit activations.
    void (*quantize_fine)(const float* x, const Activations& to, long row, long rest);

    // Few rows: rows [row, row_end) of the activations as records, the first of them at `to.at`.
    void (*arrange)(const Layout& layout, const Activations& x, long row, long row_end, const Records& to);
    // Panels [panel, panel_end) times the first `rows` -> out[row * stride + column - panel * 16].
    void (*direct)(const Layout& layout, const std::uint8_t* bytes, const Records& records, long rows, long panel,
                   long panel_end, float* out, long stride);
    long few_rows;  // up to so many rows `direct` is the faster way

    // Many rows: unpack `tile.panels` panels once, then multiply all rows with them.
    void (*unpack)(const Layout& layout, const std::uint8_t* bytes, long panel, const Tile& tile);
    void (*correct)(const Layout& layout, const Activations& x, long row, long row_end, std::int32_t* start,
                    float* weight);
    // Columns of the tile past `columns` are computed and not stored.
    void (*tiled)(const Layout& layout, const Tile& tile, const Activations& x, const Corrections& corrections,
                  long row, long row_end, float* out, long stride, long columns);
    long tile_panels;
    long tiled_rows;  // activations a tile passes over while they are in the first-level cache

    // Where products of 16 bits with weights of 8 are faster than two of 8: x [cols] -> row `row`, and panels
    // [panel, panel_end) times all rows -> out[row * stride + column - panel * 16]. Null in other sets.
    void (*round_words)(const float* x, const Words& to, long row);
    void (*words)(const Layout& layout, const std::uint8_t* bytes, const Words& x, long panel, long panel_end,
                  float* out, long stride);

    // Plain weights [rows, cols] of 0: float32, 1: bfloat16, 2: float16; outputs [begin, end) of rows [row, row_end).
    void (*dense)(int type, const void* weights, const float* x, long cols, long begin, long end, long row,
                  long row_end, float* out, long stride);
};

}  // namespace pocketgem
