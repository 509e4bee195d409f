// Routed experts: each row runs through the few experts chosen for it. Rows are gathered by expert, so that an expert's
// weights are read once a call however many rows chose it.
#pragma once

#include <cstdint>

#include "linear.h"

namespace pocketgem {

struct Expert {
    const Weight *gate, *up, *down;
};

// out [rows, hidden] = sum over the `chosen` experts e of a row: share * down_e(gelu(gate_e(x)) * up_e(x))
struct Choices {
    const std::int64_t* experts;  // [rows, chosen]
    const float* shares;          // [rows, chosen]
    long chosen;
};

void run_experts(Kernels& kernels, const float* x, long rows, const Expert* experts, long count, const Choices& choices,
                 float* out);

}  // namespace pocketgem
