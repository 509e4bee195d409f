// The layers' matrix products with what surrounds them, each one call: norm before, gate or residual after.
#pragma once

#include "kernel_set.h"
#include "packed.h"

namespace pocketgem {

enum class Plain { float32 = 0, bfloat16 = 1, float16 = 2 };

// A matrix [rows, cols]: packed planes, or plain numbers in the file's order.
struct Weight {
    Layout layout;  // of a packed one; for a plain one only rows, cols and panels
    const std::uint8_t* bytes = nullptr;
    bool packed = false;
    Plain plain = Plain::float32;
};

// Rows that enter a product; `norm` is the RMS norm's weight before it, or null for none.
struct Rows {
    const float* x;
    long rows, cols;
    const float* norm;
    float eps;
};

constexpr int kMostWeights = 3;  // matrices of one call

// In each of these calls `changes` says what is added to the products of some rows, before anything else is done with
// them: null or one for each matrix.

// outs[i] [rows, weights[i].rows] = norm(x) @ weights[i].T
void linear(Kernels& kernels, const Rows& in, const Weight* const* weights, float* const* outs, int count,
            const Changes* changes = nullptr);

// out [rows, weight.rows] = x @ weight.T with activations quantised twice as finely: twice the arithmetic, the same
// memory traffic. For the head, whose rounding reaches the logits undiminished.
void fine_linear(Kernels& kernels, const Rows& in, const Weight& weight, float* out);

// out [rows, gate.rows] = gelu(norm(x) @ gate.T) * (norm(x) @ up.T)
void geglu_linear(Kernels& kernels, const Rows& in, const Weight& gate, const Weight& up, float* out,
                  const Changes* changes = nullptr);

// out [rows, weight.rows] = gelu(norm(x) @ weight.T) * vectors, whose rows are `vector_stride` apart
void gated_linear(Kernels& kernels, const Rows& in, const Weight& weight, const float* vectors, long vector_stride,
                  float* out, const Changes* changes = nullptr);

// out [rows, weight.rows] = (residual + rms_norm(x @ weight.T) * post_norm) * factor; out may be residual
void add_linear(Kernels& kernels, const Rows& in, const Weight& weight, const float* post_norm, float eps, float factor,
                const float* residual, float* out, const Changes* changes = nullptr);

// add_linear of geglu_linear, with changes of gate, up and down. Of many rows what lies between is rounded for the
// second product while it is made, and never there as floats.
struct Mlp {
    const Weight *gate, *up, *down;
};
void mlp(Kernels& kernels, const Rows& in, const Mlp& weights, const float* post_norm, float eps, float factor,
         const float* residual, float* out, const Changes* changes);

// out [rows, outputs] += what `changes` add for rows x [rows, cols], to products that were made before.
void change_rows(Kernels& kernels, const Rows& in, long outputs, float* out, const Changes& changes);

}  // namespace pocketgem
