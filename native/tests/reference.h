// Slow and plain: what the kernels must give, in double precision, written from packed.h and the formulas' text.
#pragma once

#include "check.h"

namespace pocketgem::check {

// A value and how far from it a correct kernel may be.
struct Value {
    double value = 0, error = 0;
};

// Quantised activations with their memory.
struct Quantised {
    std::vector<std::int8_t> q;
    std::vector<float> scale;
    std::vector<std::int32_t> sums16, sums32;
    Activations view;

    Quantised(long rows, long cols);
    Quantised(const KernelSet& set, const std::vector<float>& x, long cols);  // by the set's own `quantize`
    // By its `quantize_fine`: as many rows again, of what rounding left.
    static Quantised fine(const KernelSet& set, const std::vector<float>& x, long cols);
};

// The same in 16 bits, of a set that has them.
struct InWords {
    std::vector<std::int16_t> q;
    std::vector<float> scale;
    Words view;

    InWords(const KernelSet& set, const std::vector<float>& x, long cols);
};

// A packed matrix of random planes, and its numbers as packed.h says: (q - zero), scale and minimum of each.
struct Matrix {
    Layout layout;
    std::vector<std::uint8_t> bytes;
    std::vector<int> q;                  // [rows, cols]
    std::vector<double> scale, minimum;  // [rows, cols / group]

    // `wild`: scales over all of float16, subnormals and the largest among them
    Matrix(Random& random, const Format& format, long rows, long cols, bool wild);
    Value times(const Activations& x, long row, long output) const { return sum_of(x.q, x.scale, row, output); }
    Value times(const Words& x, long row, long output) const { return sum_of(x.q, x.scale, row, output); }

private:
    template <typename Number>
    Value sum_of(const Number* x, const float* factors, long row, long output) const;
};

const Format& format_of(const char* type);
std::uint16_t random_half(Random& random, bool wild);  // never an infinity or a NaN
double half(std::uint16_t bits);
double bfloat(std::uint16_t bits);
double gelu(double x);
double inverse_rms(const double* x, long n, double eps);

}  // namespace pocketgem::check
