// The registers of tiles_amx.h in memory, each instruction in plain C++: so that the kernels over them can be checked
// on any processor. What would be a fault of the processor ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tile_shapes.h"

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::tiles {
namespace {

struct Register {
    std::uint8_t bytes[16][64];
};
struct Unit {  // of one thread
    bool configured = false;
    Shapes shapes;
    Register tile[8] = {};
};
inline Unit& unit() {
    thread_local Unit unit;
    return unit;
}

inline void need(bool fine, const char* what) {
    if (fine) return;
    std::fprintf(stderr, "tiles_soft: %s\n", what);
    std::abort();
}
inline void need_tile(int tile) {
    const Unit& u = unit();
    need(u.configured, "used without a configuration");
    need(u.shapes.rows[tile] && u.shapes.row_bytes[tile], "a tile without a shape is used");
}

inline void configure(const Shapes& shapes) {
    need(shapes.palette == 1 && shapes.start_row == 0, "not a palette that is known");
    for (int t = 0; t < 16; ++t) {
        need(shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64, "a tile larger than 16 rows of 64 bytes");
        need(!shapes.rows[t] == !shapes.row_bytes[t], "half a shape");
        need(t < 8 || !shapes.rows[t], "a shape for a register that is not there");
    }
    unit() = Unit{true, shapes, {}};  // LDTILECFG clears all tiles
}
inline void release() { unit() = Unit{}; }

template <int tile> inline void clear() {
    need_tile(tile);
    unit().tile[tile] = {};
}
template <int tile> inline void load(const void* from, long stride) {
    clear<tile>();
    const Shapes& s = unit().shapes;
    for (int r = 0; r < s.rows[tile]; ++r)
        std::memcpy(unit().tile[tile].bytes[r], static_cast<const char*>(from) + r * stride, s.row_bytes[tile]);
}
template <int tile> inline void store(void* to, long stride) {
    need_tile(tile);
    const Shapes& s = unit().shapes;
    for (int r = 0; r < s.rows[tile]; ++r)
        std::memcpy(static_cast<char*>(to) + r * stride, unit().tile[tile].bytes[r], s.row_bytes[tile]);
}

template <int sums, int a, int b> inline void multiply() {
    static_assert(sums != a && sums != b && a != b, "the processor refuses a register named twice");
    need_tile(sums), need_tile(a), need_tile(b);
    Unit& u = unit();
    const Shapes& s = u.shapes;
    need(s.rows[sums] == s.rows[a] && s.row_bytes[sums] == s.row_bytes[b] && s.row_bytes[a] == 4 * s.rows[b],
         "shapes that do not multiply");
    for (int m = 0; m < s.rows[sums]; ++m)
        for (int n = 0; n < s.row_bytes[sums] / 4; ++n) {
            std::int32_t sum;
            std::memcpy(&sum, u.tile[sums].bytes[m] + 4 * n, 4);
            for (int k = 0; k < s.rows[b]; ++k)
                for (int i = 0; i < 4; ++i)
                    sum += static_cast<std::int8_t>(u.tile[a].bytes[m][4 * k + i]) *
                           static_cast<std::int8_t>(u.tile[b].bytes[k][4 * n + i]);
            std::memcpy(u.tile[sums].bytes[m] + 4 * n, &sum, 4);
        }
}

}  // namespace
}  // namespace pocketgem::tiles
