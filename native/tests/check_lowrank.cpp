#include "reference.h"

namespace pocketgem::check {
namespace {

// A change of a matrix [outputs, cols] in the kernels' order, and its numbers in double.
struct Halves {
    std::vector<std::uint16_t> a, b;
    std::vector<double> down, up;  // [rank, cols], [outputs, rank]
    LowRank change;

    Halves(Random& random, long rank, long cols, long outputs)
        : a(static_cast<std::size_t>(rank * whole(cols))),
          b(static_cast<std::size_t>(rank * whole(outputs))),
          down(static_cast<std::size_t>(rank * cols)),
          up(static_cast<std::size_t>(rank * outputs)) {
        for (long j = 0; j < rank; ++j) {
            for (long c = 0; c < cols; ++c) {
                const std::uint16_t bits = random_half(random, true);
                a[static_cast<std::size_t>(j / kRanks * whole(cols) * kRanks + c / 16 * 64 + j % kRanks * 16 +
                                           c % 16)] = bits;
                down[static_cast<std::size_t>(j * cols + c)] = half(bits);
            }
            for (long n = 0; n < outputs; ++n) {
                const std::uint16_t bits = random_half(random, false);
                b[static_cast<std::size_t>((n / 16 * rank + j) * 16 + n % 16)] = bits;
                up[static_cast<std::size_t>(n * rank + j)] = half(bits);
            }
        }
        change = {a.data(), b.data(), rank, 0x1p-12f};
    }
    static long whole(long n) { return (n + 15) / 16 * 16; }
};

void check_down(const KernelSet& set, const Halves& halves, const std::vector<float>& x, long cols, long rows,
                Report& report) {
    const long rank = halves.change.rank;
    Results low(rows, rank + 2);
    set.lowrank.down(halves.change, x.data(), cols, rows, low.at(0, 0), low.stride);
    for (long r = 0; r < rows; ++r) {
        for (long j = 0; j < rank; ++j) {
            double value = 0, size = 0;
            for (long c = 0; c < cols; ++c) {
                const double term = halves.down[static_cast<std::size_t>(j * cols + c)] *
                                    x[static_cast<std::size_t>(r * cols + c)] * 0x1p-12;
                value += term, size += std::fabs(term);
            }
            report.expect(near(*low.at(r, j), value, size * static_cast<double>(cols / 16 + 24) * 0x1p-24),
                          "row %ld rank %ld is %.9g, not %.9g", r, j, *low.at(r, j), value);
        }
        for (long j = rank; j < low.stride; ++j) report.expect(low.untouched(r, j), "row %ld wrote rank %ld", r, j);
    }
}

void check_up(const KernelSet& set, const Halves& halves, Random& random, long outputs, long rows, Report& report) {
    const long rank = halves.change.rank, panels = (outputs + 15) / 16, panel = panels > 2 ? 1 : 0;
    const std::vector<float> low = random.floats(rows * rank), before = random.floats(rows * outputs);
    Results out(rows, outputs + 3);
    for (long r = 0; r < rows; ++r)
        for (long n = panel * 16; n < outputs; ++n)
            *out.at(r, n - panel * 16) = before[static_cast<std::size_t>(r * outputs + n)];
    set.lowrank.up(halves.change, low.data(), rank, panel, panels, outputs, rows, out.at(0, 0), out.stride);
    for (long r = 0; r < rows; ++r) {
        for (long n = panel * 16; n < outputs; ++n) {
            double value = before[static_cast<std::size_t>(r * outputs + n)], size = std::fabs(value);
            for (long j = 0; j < rank; ++j) {
                const double term =
                    halves.up[static_cast<std::size_t>(n * rank + j)] * low[static_cast<std::size_t>(r * rank + j)];
                value += term, size += std::fabs(term);
            }
            const float got = *out.at(r, n - panel * 16);
            report.expect(near(got, value, size * static_cast<double>(rank + 1) * 0x1p-23),
                          "row %ld column %ld is %.9g, not %.9g", r, n, got, value);
        }
        for (long n = outputs - panel * 16; n < out.stride; ++n)
            report.expect(out.untouched(r, n), "row %ld wrote column %ld", r, n + panel * 16);
    }
}

// The rows of one call, one at a time.
void check_alone(const KernelSet& set, const Halves& halves, const std::vector<float>& x, long cols, long outputs,
                 long rows, Report& report) {
    const long rank = halves.change.rank, panels = (outputs + 15) / 16;
    const auto run = [&](long row, long count) {
        std::vector<float> low(static_cast<std::size_t>(count * rank)), out(static_cast<std::size_t>(count * outputs));
        set.lowrank.down(halves.change, x.data() + row * cols, cols, count, low.data(), rank);
        set.lowrank.up(halves.change, low.data(), rank, 0, panels, outputs, count, out.data(), outputs);
        return out;
    };
    const std::vector<float> all = run(0, rows);
    for (long r = 0; r < rows; ++r) {
        const std::vector<float> one = run(r, 1);
        for (long n = 0; n < outputs; ++n)
            report.expect(same(one[static_cast<std::size_t>(n)], all[static_cast<std::size_t>(r * outputs + n)]),
                          "row %ld column %ld differs in company", r, n);
    }
}

}  // namespace

void check_lowrank(const KernelSet& set, Report& report) {
    for (const long rank : {4l, 8l, 20l})
        for (const long cols : {16l, 40l, 256l})
            for (const long outputs : {7l, 16l, 50l})
                for (const long rows : {1l, 3l, 5l, 11l}) {
                    Random random(static_cast<std::uint64_t>(rank * 10000 + cols * 10 + outputs + rows));
                    report.in(std::string(set.name) + " lowrank " + std::to_string(rank) + " [" +
                              std::to_string(outputs) + ", " + std::to_string(cols) + "] rows " + std::to_string(rows));
                    const Halves halves(random, rank, cols, outputs);
                    const std::vector<float> x = random.floats(rows * cols, 3);
                    check_down(set, halves, x, cols, rows, report);
                    check_up(set, halves, random, outputs, rows, report);
                    check_alone(set, halves, x, cols, outputs, rows, report);
                }
}

}  // namespace pocketgem::check
