// Root-mean-square normalisation over rows. Knows pointers and sizes, nothing of Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pocketgem {

struct bfloat16 {
    std::uint16_t bits;
};

// out[r][i] = x[r][i] / sqrt(mean_i(x[r]^2) + eps) * weight[i], accumulated in float.
// weight may be null (no scale). out may be x.
template <typename T>
void rms_norm(const T* x, const float* weight, T* out, std::size_t rows, std::size_t dim, float eps);

}  // namespace pocketgem
