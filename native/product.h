// One matrix times rows that are ready, cut into tasks: what every layer's product is made of.
#pragma once

#include "kernel_set.h"
#include "linear.h"

namespace pocketgem {

// What changes the products of one matrix: the rows' A x, made beside the activations.
struct Changed {
    Changes changes;
    const float* low = nullptr;  // [rows, stride]
    long stride = 0;
};

// Activations ready for products: as floats for plain weights, quantised for packed ones.
struct Ready {
    const float* floats = nullptr;
    Activations quantised;
    long rows = 0, cols = 0;
    Changed changed[kMostWeights];
};

// One matrix of a call: what its products need beside the activations, and how it is cut.
struct Job {
    const Weight* weight = nullptr;
    Records records;          // of a packed matrix's rows, where they are few,
    Corrections corrections;  // and where they are many
    long panels_a_task = 1;
    long tasks = 0;
    Changed changed;
};

// Quantised rows in these buffers, not written yet.
Activations room_in(Rounded& buffers, long rows, long cols);

// Whether so many packed rows are few: they are multiplied without unpacking the weights first.
bool are_few(const Kernels& kernels, long rows);

// Norms the rows where asked, quantises them where a packed matrix will read them, and multiplies them with the A of
// what changes the products of `count` matrices.
Ready prepare(Kernels& kernels, const Rows& in, bool packed, const Changes* changes = nullptr, int count = 0);

// Packed products of twice the rows, which add up in pairs: row r and row in.rows + r. See
// MatmulKernels::quantize_fine.
Ready prepare_fine(Kernels& kernels, const Rows& in);

// The rows in 16 bits, for MatmulKernels::words.
Words prepare_words(Kernels& kernels, const Rows& in);

// Which of its products a matrix will be asked for: few rows at once, many, or (of parts of the rows) both.
struct Sizes {
    bool few, many;
};
Sizes sizes_of(const Kernels& kernels, long rows);

// Plans the product of rows with a matrix; `memory` holds what it needs beside them until the product is done.
Job job_of(Kernels& kernels, const Weight& weight, const Ready& x, Buffer& memory, Sizes sizes);
inline Job job_of(Kernels& kernels, const Weight& weight, const Ready& x, Buffer& memory) {
    return job_of(kernels, weight, x, memory, sizes_of(kernels, x.rows));
}

// Adds what `changed` says to the outputs of panels [panel, panel_end) of a matrix with `outputs` rows.
void add_changes(Kernels& kernels, const Changed& changed, long outputs, long panel, long panel_end, float* out,
                 long stride);

// Panels [panel, panel_end) of a matrix times all rows -> out[row * stride + column - panel * 16].
void compute(Kernels& kernels, const Job& job, const Ready& x, long panel, long panel_end, float* out, long stride);

// The same for a gated pair: gelu(x @ gate.T) * (x @ up.T).
void compute_gated(Kernels& kernels, const Job& gate, const Job& up, const Ready& x, long panel, long panel_end,
                   float* out, long stride);

// Rows [begin, end) of a product alone.
Ready part_of(const Ready& x, long begin, long end);
Job part_of(const Job& job, const Ready& x, long begin);

// The same job in tasks of an even number of panels: 32 columns, which share a scale where they are rounded, stay
// together.
Job in_pairs(Job job);

inline long last_panel(const Job& job, long panel) {
    const long end = panel + job.panels_a_task;
    return end < job.weight->layout.panels ? end : job.weight->layout.panels;
}

inline long columns_of(const Weight& w, long panel, long panel_end) {
    return (panel_end * kPanel < w.layout.rows ? panel_end * kPanel : w.layout.rows) - panel * kPanel;
}

}  // namespace pocketgem
