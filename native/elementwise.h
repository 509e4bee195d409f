// What stands between two matrix products, and behind the last: norms, the gated unit, the soft cap, the largest logit.
// One row a call, any length.
#pragma once

namespace pocketgem {

// The largest number of a row and the first place it is at, where all are finite; else nothing but that they are not.
struct Peak {
    float value;
    long at;
    bool finite;
};

// `out` may be `x` (or `gate`, or `up`). A NaN in a row gives NaN, never anything else's value.
struct ElementKernels {
    // out = x / sqrt(mean(x^2) + eps) * weight; a null weight is all ones
    void (*norm)(const float* x, const float* weight, float* out, long n, float eps);

    // x = (x + norm(y) * weight) * factor
    void (*add_norm)(float* x, const float* y, const float* weight, long n, float eps, float factor);

    // out = gelu(gate) * up, the tanh form of gelu
    void (*geglu)(const float* gate, const float* up, float* out, long n);

    // x = cap * tanh(x / cap)
    void (*softcap)(float* x, long n, float cap);

    // x = x + y
    void (*add)(float* x, const float* y, long n);

    Peak (*peak)(const float* x, long n);
};

}  // namespace pocketgem
