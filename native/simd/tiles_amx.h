// Intel AMX: eight registers of up to sixteen rows of 64 bytes. Needs the system's leave (trial.h) and a processor with
// AMX-TILE and AMX-INT8. In assembly, because a register's number must be a constant of the instruction, and because
// GCC 12's own _tile_loadd and _tile_loadconfig do not say what memory they read.
#pragma once

#include "tile_shapes.h"

// Internal linkage: every instruction set compiles the same names, and the linker must never mix them.
namespace pocketgem::tiles {
namespace {

inline void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
inline void release() { asm volatile("tilerelease"); }

template <int tile> inline void clear() { asm volatile("tilezero %%tmm%c0" : : "i"(tile)); }

// Rows `stride` bytes apart.
template <int tile> inline void load(const void* from, long stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile> inline void store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}

// sums[m][n] += a[m][4 k + i] * b[k][4 n + i] over all k and the four i; signed bytes, int32 sums.
template <int sums, int a, int b> inline void multiply() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

}  // namespace
}  // namespace pocketgem::tiles
