#include "reference.h"

namespace pocketgem::check {

Quantised::Quantised(long rows, long cols)
    : q(static_cast<std::size_t>(rows * cols)),
      scale(q.size() / 32),
      sums16(q.size() / 16),
      sums32(q.size() / 32),
      view{rows, cols, q.data(), scale.data(), sums16.data(), sums32.data()} {}

Quantised::Quantised(const KernelSet& set, const std::vector<float>& x, long cols)
    : Quantised(static_cast<long>(x.size()) / cols, cols) {
    for (long r = 0; r < view.rows; ++r) set.matmul.quantize(x.data() + r * cols, cols, view, r, 0);
}

Quantised Quantised::fine(const KernelSet& set, const std::vector<float>& x, long cols) {
    const long rows = static_cast<long>(x.size()) / cols;
    Quantised both(2 * rows, cols);
    for (long r = 0; r < rows; ++r) set.matmul.quantize_fine(x.data() + r * cols, both.view, r, rows + r);
    return both;
}

InWords::InWords(const KernelSet& set, const std::vector<float>& x, long cols)
    : q(x.size()), scale(x.size() / 32), view{static_cast<long>(x.size()) / cols, cols, q.data(), scale.data()} {
    for (long r = 0; r < view.rows; ++r) set.matmul.round_words(x.data() + r * cols, view, r);
}

const Format& format_of(const char* type) {
    for (const Format& format : kFormats)
        if (!std::strcmp(format.type, type)) return format;
    std::abort();
}

double half(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return bits & 0x8000 ? -size : size;
}

double bfloat(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }

double gelu(double x) { return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2; }

double inverse_rms(const double* x, long n, double eps) {
    double squares = 0;
    for (long i = 0; i < n; ++i) squares += x[i] * x[i];
    return 1 / std::sqrt(squares / static_cast<double>(n) + eps);
}

std::uint16_t random_half(Random& random, bool wild) {
    const long exponent = wild ? random.below(31) : 8 + random.below(8);
    return static_cast<std::uint16_t>((random.bits() & 0x83ffu) | static_cast<std::uint32_t>(exponent << 10));
}

namespace {

void set_half(std::uint8_t* p, std::uint16_t bits) { std::memcpy(p, &bits, 2); }
double half_at(const std::uint8_t* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, 2);
    return half(bits);
}

// Where a number lies in its panel's planes.
struct Place {
    long panel, row, block, k, group, super;
};

Place place_of(const Layout& layout, long row, long col) {
    return {row / 16, row % 16, col / 32, col % 32, col / layout.format.group, col / 256};
}

const std::uint8_t* at(const Matrix& m, const Plane& plane, long panel) {
    return m.bytes.data() + plane.start + panel * plane.stride;
}

int number_of(const Matrix& m, const Place& a) {
    const std::uint8_t* base = at(m, m.layout.base, a.panel);
    const long j = a.k / 4, b = a.k % 4, byte = 4 * a.row + b;
    if (m.layout.format.bits == 8) return static_cast<std::int8_t>(base[a.block * 512 + j * 64 + byte]);
    const int both = base[a.block * 256 + a.k / 8 * 64 + byte];
    int q = a.k % 8 < 4 ? both & 15 : both >> 4;
    if (m.layout.format.bits == 5) q += (at(m, m.layout.high, a.panel)[a.block * 64 + byte] >> j & 1) << 4;
    if (m.layout.format.bits == 6) {
        const int bits = at(m, m.layout.high, a.panel)[a.block * 128 + a.k / 16 * 64 + byte];
        q += (bits >> 2 * (a.k % 16 / 4) & 3) << 4;
    }
    return q - m.layout.format.zero;
}

double unit_of(const Matrix& m, const Plane& plane, const Place& a) {
    return half_at(at(m, plane, a.panel) + (a.super * 16 + a.row) * 2);
}

double scale_of(const Matrix& m, const Place& a) {
    const std::uint8_t* scale = at(m, m.layout.scale, a.panel);
    if (!m.layout.format.super) return half_at(scale + (a.group * 16 + a.row) * 2);
    return static_cast<std::int8_t>(scale[a.group * 16 + a.row]) * unit_of(m, m.layout.scale_unit, a);
}

double minimum_of(const Matrix& m, const Place& a) {
    if (!m.layout.format.minimum) return 0;
    const std::uint8_t* minimum = at(m, m.layout.minimum, a.panel);
    if (!m.layout.format.super) return half_at(minimum + (a.group * 16 + a.row) * 2);
    return -unit_of(m, m.layout.minimum_unit, a) * minimum[a.group * 16 + a.row];
}

// Random bytes of `size` a row and step: sixteen rows' follow one another, and rows past the end have zeros.
void fill(Matrix& m, const Plane& plane, long size, Random& random, bool halves, bool wild) {
    for (long p = 0; p < m.layout.panels; ++p)
        for (long i = 0; i < plane.stride; ++i) {
            if (p * 16 + i / size % 16 >= m.layout.rows) continue;
            std::uint8_t* to = m.bytes.data() + plane.start + p * plane.stride + i;
            if (!halves) *to = static_cast<std::uint8_t>(random.bits());
            if (halves && i % 2 == 0) set_half(to, random_half(random, wild));
        }
}

}  // namespace

Matrix::Matrix(Random& random, const Format& format, long rows, long cols, bool wild)
    : layout(layout_of(format, rows, cols)), bytes(static_cast<std::size_t>(layout.bytes)) {
    const bool halves = !format.super;
    fill(*this, layout.base, 4, random, false, wild);
    fill(*this, layout.high, 4, random, false, wild);
    fill(*this, layout.scale, halves ? 2 : 1, random, halves, wild);
    fill(*this, layout.minimum, halves ? 2 : 1, random, halves, wild);
    fill(*this, layout.scale_unit, 2, random, true, wild);
    fill(*this, layout.minimum_unit, 2, random, true, wild);
    for (long r = 0; r < rows; ++r)
        for (long c = 0; c < cols; ++c) {
            const Place place = place_of(layout, r, c);
            q.push_back(number_of(*this, place));
            if (c % format.group) continue;
            scale.push_back(scale_of(*this, place));
            minimum.push_back(minimum_of(*this, place));
        }
}

template <typename Number>
Value Matrix::sum_of(const Number* x, const float* factors, long row, long output) const {
    const long group = layout.format.group, groups = layout.cols / group;
    double value = 0, size = 0;
    for (long g = 0; g < groups; ++g) {
        long dot = 0, sum = 0;
        for (long c = g * group; c < (g + 1) * group; ++c) {
            dot += q[static_cast<std::size_t>(output * layout.cols + c)] * x[row * layout.cols + c];
            sum += x[row * layout.cols + c];
        }
        const double factor = factors[row * (layout.cols / 32) + g * group / 32];
        const auto at = static_cast<std::size_t>(output * groups + g);
        const double product = scale[at] * static_cast<double>(dot) * factor;
        const double least = minimum[at] * static_cast<double>(sum) * factor;
        value += product + least;
        size += std::fabs(product) + std::fabs(least);
    }
    const double roundings = static_cast<double>(2 * groups + 4);  // one each addition and product
    return {value, size * roundings * 0x1p-24 + 1e-40};
}

template Value Matrix::sum_of(const std::int8_t*, const float*, long, long) const;
template Value Matrix::sum_of(const std::int16_t*, const float*, long, long) const;

}  // namespace pocketgem::check
