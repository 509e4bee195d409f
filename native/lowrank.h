// Low-rank changes of matrices: chosen rows of a product get B (A x) on top of W x, each by the adapter it belongs to.
// A row's result does not depend on which rows come with it, nor on their adapters.
#pragma once

#include <cstdint>

namespace pocketgem {

constexpr long kRanks = 4;  // rows of A that one pass over x multiplies; ranks are padded to it with zeros

// y += scale * B (A x). Numbers are float16; the powers of two that brought them into its range are in `scale`.
struct LowRank {
    const std::uint16_t* a = nullptr;  // [rank / 4, cols / 16, 4, 16], columns padded with zeros
    const std::uint16_t* b = nullptr;  // [rows / 16, rank, 16], rows padded with zeros
    long rank = 0;
    float scale = 1;
};

// Rows [begin, end) of a call, and what changes them.
struct Change {
    long begin, end;
    const LowRank* by;
};

// What changes one matrix in one call; the rows of no change are the base's.
struct Changes {
    const Change* list = nullptr;
    long count = 0;
};

struct LowRankKernels {
    // low[row * stride ...] = scale * A x for rows of x [rows, cols]
    void (*down)(const LowRank& change, const float* x, long cols, long rows, float* low, long stride);

    // Outputs of panels [panel, panel_end) of a matrix with `outputs` rows:
    // out[row * stride + column - panel * 16] += B low
    void (*up)(const LowRank& change, const float* low, long low_stride, long panel, long panel_end, long outputs,
               long rows, float* out, long stride);
};

}  // namespace pocketgem
