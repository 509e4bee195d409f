// What the checks of whole products share: weights and rows with their slow results, and the comparison of a call with
// them, whatever its threads and however many rows come with one.
#pragma once

#include <memory>

#include "../linear.h"
#include "reference.h"

namespace pocketgem::check {

constexpr float kEps = 1e-6f;

// A weight of either kind with its numbers: packed of a type, or plain bfloat16 where `type` is null.
struct Either {
    std::unique_ptr<Matrix> matrix;
    std::vector<std::uint16_t> plain;
    Weight weight;

    Either(Random& random, const char* type, long rows, long cols);
    long outputs() const { return weight.layout.rows; }
    Value times(const std::vector<float>& x, const Quantised& quantised, long row, long output) const;
};

// Rows as they come and as they enter the products.
struct Input {
    std::vector<float> x, norm, normed;
    Quantised quantised;
    long rows, cols;

    Input(const KernelSet& set, std::vector<float> x, std::vector<float> norm, long cols);
    Rows first(long count) const { return {x.data(), count, cols, norm.empty() ? nullptr : norm.data(), kEps}; }
    Value times(const Either& weight, long row, long output) const {
        return weight.times(normed, quantised, row, output);
    }
};

// gelu(gate) * by
Value gated(Value gate, Value by);

// `run(kernels, rows, out)` fills out [rows, width]: its values, and that neither threads nor other rows change one.
template <typename Run, typename Want>
void check_call(const KernelSet& set, long all_rows, long width, const Run& run, const Want& want, const char* what,
                Report& report) {
    Results all(all_rows, width);
    Kernels one(set, 1);
    run(one, all_rows, all.at(0, 0));
    for (long r = 0; r < all_rows; ++r)
        for (long n = 0; n < width; ++n) {
            const Value value = want(r, n);
            report.expect(near(*all.at(r, n), value.value, value.error),
                          "%s: row %ld column %ld is %.9g, not %.9g (+- %.1g)", what, r, n, *all.at(r, n), value.value,
                          value.error);
        }
    for (const int threads : {1, 3}) {
        Kernels kernels(set, threads);
        for (const long rows : {1l, all_rows / 2, all_rows}) {
            Results some(rows, width);
            run(kernels, rows, some.at(0, 0));
            for (long r = 0; r < rows; ++r)
                for (long n = 0; n < width; ++n)
                    report.expect(same(*some.at(r, n), *all.at(r, n)),
                                  "%s, %d threads, %ld of %ld rows: row %ld column %ld is %.9g, not %.9g", what,
                                  threads, rows, all_rows, r, n, *some.at(r, n), *all.at(r, n));
        }
    }
}

}  // namespace pocketgem::check
