#include <limits>

#include "reference.h"

namespace pocketgem::check {
namespace {

// Plain weights [outputs, cols] and the same in double.
struct Plain {
    std::vector<float> floats;
    std::vector<std::uint16_t> halves;
    std::vector<double> values;
    const void* data(int type) const { return type ? static_cast<const void*>(halves.data()) : floats.data(); }
};

Plain plain(Random& random, int type, long count) {
    Plain all;
    for (long i = 0; i < count; ++i) {
        const std::uint16_t bits =
            type == 2 ? random_half(random, true) : static_cast<std::uint16_t>(bits_of(random.unit()) >> 16);
        if (type == 0) all.floats.push_back(random.unit());
        if (type != 0) all.halves.push_back(bits);
        all.values.push_back(type == 0 ? all.floats.back() : type == 1 ? bfloat(bits) : half(bits));
    }
    return all;
}

Value product(const double* w, const float* x, long cols) {
    double value = 0, size = 0;
    for (long c = 0; c < cols; ++c) value += w[c] * x[c], size += std::fabs(w[c] * x[c]);
    return {value, size * static_cast<double>(cols / 16 + 24) * 0x1p-24};
}

void check_shape(const KernelSet& set, int type, long outputs, long cols, long rows, Report& report) {
    Random random(static_cast<std::uint64_t>(outputs * 1000 + cols + rows + type));
    const Plain w = plain(random, type, outputs * cols);
    std::vector<float> x = random.floats(rows * cols);
    if (rows > 2) x[static_cast<std::size_t>(2 * cols + random.below(cols))] = std::numeric_limits<float>::quiet_NaN();
    const long begin = outputs > 6 ? 2 : 0, row = rows > 4 ? 1 : 0;
    Results out(rows - row, outputs + 3);
    set.matmul.dense(type, w.data(type), x.data(), cols, begin, outputs, row, rows, out.at(0, 0), out.stride);
    for (long r = row; r < rows; ++r)
        for (long n = 0; n < out.stride; ++n) {
            const float got = *out.at(r - row, n);
            if (n < begin || n >= outputs) {
                report.expect(out.untouched(r - row, n), "row %ld wrote column %ld", r, n);
                continue;
            }
            const Value want = product(w.values.data() + n * cols, x.data() + r * cols, cols);
            report.expect(near(got, want.value, want.error), "row %ld column %ld is %.9g, not %.9g", r, n, got,
                          want.value);
        }
}

}  // namespace

void check_dense(const KernelSet& set, Report& report) {
    for (int type = 0; type < 3; ++type)
        for (const long cols : {1l, 15l, 16l, 33l, 100l, 256l})
            for (const long outputs : {1l, 4l, 7l, 18l})
                for (const long rows : {1l, 3l, 4l, 9l}) {
                    report.in(std::string(set.name) + " dense type " + std::to_string(type) + " [" +
                              std::to_string(outputs) + ", " + std::to_string(cols) + "] rows " + std::to_string(rows));
                    check_shape(set, type, outputs, cols, rows, report);
                }
}

}  // namespace pocketgem::check
