#include <algorithm>
#include <memory>

#include "../linear.h"
#include "reference.h"

namespace pocketgem::check {
namespace {

constexpr long kCols = 512;
constexpr float kEps = 1e-6f;

// A weight of either kind with its numbers.
struct Either {
    std::unique_ptr<Matrix> matrix;
    std::vector<std::uint16_t> plain;
    Weight weight;

    Either(Random& random, const char* type, long rows) {
        if (type) {
            matrix = std::make_unique<Matrix>(random, format_of(type), rows, kCols, false);
            weight = {matrix->layout, matrix->bytes.data(), true, Plain::float32};
        } else {
            for (long i = 0; i < rows * kCols; ++i) plain.push_back(static_cast<std::uint16_t>(bits_of(random.unit()) >> 16));
            weight.layout.rows = rows, weight.layout.cols = kCols, weight.layout.panels = (rows + 15) / 16;
            weight.bytes = reinterpret_cast<const std::uint8_t*>(plain.data()), weight.plain = Plain::bfloat16;
        }
    }
    long outputs() const { return weight.layout.rows; }
    Value times(const std::vector<float>& x, const Quantised& quantised, long row, long output) const {
        if (matrix) return matrix->times(quantised.view, row, output);
        double value = 0, size = 0;
        for (long c = 0; c < kCols; ++c) {
            const double term = bfloat(plain[static_cast<std::size_t>(output * kCols + c)]) * x[static_cast<std::size_t>(row * kCols + c)];
            value += term, size += std::fabs(term);
        }
        return {value, size * 64 * 0x1p-24};
    }
};

// Rows as they come and as they enter the products.
struct Input {
    std::vector<float> x, norm, normed;
    Quantised quantised;
    long rows;

    Input(const KernelSet& set, Random& random, long rows, bool with_norm)
        : x(random.floats(rows * kCols, 3)), norm(with_norm ? random.floats(kCols, 2) : std::vector<float>{}),
          normed(normed_by(set, x, norm, rows)), quantised(set, normed, kCols), rows(rows) {}
    static std::vector<float> normed_by(const KernelSet& set, std::vector<float> x, const std::vector<float>& norm, long rows) {
        for (long r = 0; r < rows && !norm.empty(); ++r)
            set.element.norm(x.data() + r * kCols, norm.data(), x.data() + r * kCols, kCols, kEps);
        return x;
    }
    Rows first(long count) const { return {x.data(), count, kCols, norm.empty() ? nullptr : norm.data(), kEps}; }
    Value times(const Either& weight, long row, long output) const { return weight.times(normed, quantised, row, output); }
};

// gelu is never steeper than 1.13.
Value gated(Value gate, Value by) {
    const double opened = gelu(gate.value), error = 1.13 * gate.error + 2e-6 * std::fabs(opened) + 1e-6;
    return {opened * by.value, error * (std::fabs(by.value) + by.error) + std::fabs(opened) * by.error};
}

// `run(kernels, rows, out)` fills out [rows, width]: its values, and that neither threads nor other rows change one.
template <typename Run, typename Want>
void check_call(const KernelSet& set, const Input& in, long width, const Run& run, const Want& want, const char* what,
                Report& report) {
    Results all(in.rows, width);
    Kernels one(set, 1);
    run(one, in.rows, all.at(0, 0));
    for (long r = 0; r < in.rows; ++r)
        for (long n = 0; n < width; ++n) {
            const Value value = want(r, n);
            report.expect(near(*all.at(r, n), value.value, value.error), "%s: row %ld column %ld is %.9g, not %.9g (+- %.1g)", what, r,
                          n, *all.at(r, n), value.value, value.error);
        }
    for (const int threads : {1, 3}) {
        Kernels kernels(set, threads);
        for (const long rows : {1l, in.rows / 2, in.rows}) {
            Results some(rows, width);
            run(kernels, rows, some.at(0, 0));
            for (long r = 0; r < rows; ++r)
                for (long n = 0; n < width; ++n)
                    report.expect(same(*some.at(r, n), *all.at(r, n)),
                                  "%s, %d threads, %ld of %ld rows: row %ld column %ld is %.9g, not %.9g", what, threads, rows, in.rows,
                                  r, n, *some.at(r, n), *all.at(r, n));
        }
    }
}

void check_three(const KernelSet& set, const Input& in, const Either (&weights)[3], Report& report) {
    const Weight* pointers[3] = {&weights[0].weight, &weights[1].weight, &weights[2].weight};
    const long a = weights[0].outputs(), ab = a + weights[1].outputs(), all = ab + weights[2].outputs();
    const auto run = [&](Kernels& kernels, long rows, float* out) {  // the three side by side, as one matrix
        std::vector<std::vector<float>> parts;
        for (const Either& w : weights) parts.emplace_back(static_cast<std::size_t>(rows * w.outputs()));
        float* outs[3] = {parts[0].data(), parts[1].data(), parts[2].data()};
        linear(kernels, in.first(rows), pointers, outs, 3);
        for (long r = 0; r < rows; ++r)
            for (int i = 0; i < 3; ++i)
                out = std::copy_n(outs[i] + r * weights[i].outputs(), weights[i].outputs(), out);
    };
    check_call(set, in, all, run, [&](long r, long n) {
        const int i = n < a ? 0 : n < ab ? 1 : 2;
        return in.times(weights[i], r, n - (i == 0 ? 0 : i == 1 ? a : ab));
    }, "linear", report);
}

void check_gates(const KernelSet& set, const Input& in, const Either& gate, const Either& up, Report& report) {
    const long width = gate.outputs();
    check_call(set, in, width, [&](Kernels& k, long rows, float* out) {
        geglu_linear(k, in.first(rows), gate.weight, up.weight, out);
    }, [&](long r, long n) { return gated(in.times(gate, r, n), in.times(up, r, n)); }, "geglu_linear", report);
    Random random(9);
    const std::vector<float> vectors = random.floats(in.rows * (width + 5));
    check_call(set, in, width, [&](Kernels& k, long rows, float* out) {
        gated_linear(k, in.first(rows), gate.weight, vectors.data(), width + 5, out);
    }, [&](long r, long n) {
        return gated(in.times(gate, r, n), {vectors[static_cast<std::size_t>(r * (width + 5) + n)], 0});
    }, "gated_linear", report);
}

void check_add(const KernelSet& set, const Input& in, const Either& weight, Report& report) {
    Random random(10);
    const long width = weight.outputs();
    const std::vector<float> residual = random.floats(in.rows * width, 4), post = random.floats(width);
    std::vector<double> scales, products, errors;
    for (long r = 0; r < in.rows; ++r) {
        for (long n = 0; n < width; ++n) {
            const Value value = in.times(weight, r, n);
            products.push_back(value.value), errors.push_back(value.error);
        }
        scales.push_back(inverse_rms(products.data() + r * width, width, kEps));
    }
    check_call(set, in, width, [&](Kernels& k, long rows, float* out) {
        const bool in_place = rows % 2;
        if (in_place) std::copy_n(residual.data(), rows * width, out);
        add_linear(k, in.first(rows), weight.weight, post.data(), kEps, 0.5f, in_place ? out : residual.data(), out);
    }, [&](long r, long n) {
        const auto at = static_cast<std::size_t>(r * width + n);
        const double scale = scales[static_cast<std::size_t>(r)], normed = products[at] * scale * post[static_cast<std::size_t>(n)];
        const double error = errors[at] * scale + 1e-5 * (std::fabs(normed) + std::fabs(residual[at]) + 1);
        return Value{(residual[at] + normed) * 0.5, error};
    }, "add_linear", report);
}

}  // namespace

void check_linear(const KernelSet& set, Report& report, bool quick) {
    Random random(7);
    const Either weights[3] = {{random, "Q4_K", quick ? 150 : 300}, {random, "Q6_K", 33}, {random, nullptr, 21}};
    const Either gate(random, "Q5_K", 75), up(random, "Q8_0", 75), plain(random, nullptr, 75);
    for (const long rows : {2l, 9l, quick ? 25l : 70l}) {
        const Input in(set, random, rows, true), bare(set, random, rows, false);
        report.in(std::string(set.name) + " linear, " + std::to_string(rows) + " rows");
        check_three(set, in, weights, report);
        check_three(set, bare, weights, report);
        check_gates(set, in, gate, up, report);
        check_gates(set, bare, gate, plain, report);
        check_gates(set, in, plain, plain, report);
        check_add(set, bare, gate, report);
        check_add(set, bare, plain, report);
    }
}

}  // namespace pocketgem::check
