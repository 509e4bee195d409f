// Routed experts: each row runs through the few experts chosen for it. Rows are gathered by expert, so that an expert's
// weights are read once a call however many rows chose it.
#pragma once

#include <cstdint>

#include "linear.h"

namespace pocketgem {

// All of one layer have the same types and shapes. No gate: this one is not in memory now.
struct Expert {
    const Weight *gate, *up, *down;
};

// The experts that rows chose, and the share each has in its row's result.
struct Choices {
    const std::int64_t* experts;  // [rows, chosen]
    const float* shares;          // [rows, chosen]
    long chosen;
};

// out [rows, hidden] = sum over the `chosen` experts e of a row: share * down_e(gelu(gate_e(x)) * up_e(x))
void run_experts(Kernels& kernels, const float* x, long rows, const Expert* experts, long count, const Choices& choices,
                 float* out);

// The same in steps, for experts that are in memory one after another. First, for each batch of them:
// products [rows * chosen, hidden] = down_e(gelu(gate_e(x)) * up_e(x)) where e is in memory; the others stay.
void run_present(Kernels& kernels, const float* x, long rows, const Expert* experts, long count, const Choices& choices,
                 float* products);

// Then: out [rows, hidden] = sum of share * product.
void mix_products(Kernels& kernels, const float* products, long rows, long hidden, const Choices& choices, float* out);

}  // namespace pocketgem
