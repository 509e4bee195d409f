#include "products.h"

namespace pocketgem::check {
namespace {

std::vector<float> normed_by(const KernelSet& set, std::vector<float> x, const std::vector<float>& norm) {
    const long cols = static_cast<long>(norm.size());
    for (float* row = x.data(); cols && row < x.data() + x.size(); row += cols)
        set.element.norm(row, norm.data(), row, cols, kEps);
    return x;
}

}  // namespace

Either::Either(Random& random, const char* type, long rows, long cols) {
    if (type) {
        matrix = std::make_unique<Matrix>(random, format_of(type), rows, cols, false);
        weight = {matrix->layout, matrix->bytes.data(), true, Plain::float32};
        return;
    }
    for (long i = 0; i < rows * cols; ++i) plain.push_back(static_cast<std::uint16_t>(bits_of(random.unit()) >> 16));
    weight.layout.rows = rows, weight.layout.cols = cols, weight.layout.panels = (rows + 15) / 16;
    weight.bytes = reinterpret_cast<const std::uint8_t*>(plain.data()), weight.plain = Plain::bfloat16;
}

Value Either::times(const std::vector<float>& x, const Quantised& quantised, long row, long output) const {
    if (matrix) return matrix->times(quantised.view, row, output);
    const long cols = weight.layout.cols;
    double value = 0, size = 0;
    for (long c = 0; c < cols; ++c) {
        const double number = bfloat(plain[static_cast<std::size_t>(output * cols + c)]);
        const double term = number * x[static_cast<std::size_t>(row * cols + c)];
        value += term, size += std::fabs(term);
    }
    return {value, size * 64 * 0x1p-24};
}

Input::Input(const KernelSet& set, std::vector<float> rows_of_x, std::vector<float> weights_of_norm, long cols)
    : x(std::move(rows_of_x)),
      norm(std::move(weights_of_norm)),
      normed(normed_by(set, x, norm)),
      quantised(set, normed, cols),
      rows(static_cast<long>(x.size()) / cols),
      cols(cols) {}

// gelu is never steeper than 1.13.
Value gated(Value gate, Value by) {
    const double opened = gelu(gate.value), error = 1.13 * gate.error + 2e-6 * std::fabs(opened) + 1e-6;
    return {opened * by.value, error * (std::fabs(by.value) + by.error) + std::fabs(opened) * by.error};
}

}  // namespace pocketgem::check
