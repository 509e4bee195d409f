#include "rms_norm.h"

#include <cmath>
#include <cstring>

namespace pocketgem {
namespace {

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline void store(float value, float& out) { out = value; }

// Round to nearest, ties to even, as torch does. A NaN keeps its payload's top bits and stays a NaN.
inline void store(float value, bfloat16& out) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    out.bits = static_cast<std::uint16_t>((nan ? bits | 0x00400000u : rounded) >> 16);
}

template <typename T>
float sum_of_squares(const T* x, std::size_t dim) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < dim; ++i) {
        const float value = load(x[i]);
        sum += value * value;
    }
    return sum;
}

}  // namespace

template <typename T>
void rms_norm(const T* x, const float* weight, T* out, std::size_t rows, std::size_t dim, float eps) {
    for (std::size_t r = 0; r < rows; ++r, x += dim, out += dim) {
        const float scale = 1.0f / std::sqrt(sum_of_squares(x, dim) / static_cast<float>(dim) + eps);
        if (weight == nullptr) {
            for (std::size_t i = 0; i < dim; ++i) store(load(x[i]) * scale, out[i]);
        } else {
            for (std::size_t i = 0; i < dim; ++i) store(load(x[i]) * scale * weight[i], out[i]);
        }
    }
}

template void rms_norm<float>(const float*, const float*, float*, std::size_t, std::size_t, float);
template void rms_norm<bfloat16>(const bfloat16*, const float*, bfloat16*, std::size_t, std::size_t, float);

}  // namespace pocketgem
