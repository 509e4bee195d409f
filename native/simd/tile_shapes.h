// The shapes of the eight registers of a matrix unit, as LDTILECFG reads them.
#pragma once

#include <cstdint>

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::tiles {
namespace {

struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    void set(int tile, long tile_rows, long bytes) {
        rows[tile] = static_cast<std::uint8_t>(tile_rows), row_bytes[tile] = static_cast<std::uint16_t>(bytes);
    }
};
static_assert(sizeof(Shapes) == 64);

}  // namespace
}  // namespace pocketgem::tiles
