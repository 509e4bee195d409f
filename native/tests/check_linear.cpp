#include <algorithm>

#include "products.h"

namespace pocketgem::check {
namespace {

constexpr long kCols = 512;

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
    check_call(
        set, in.rows, all, run,
        [&](long r, long n) {
            const int i = n < a ? 0 : n < ab ? 1 : 2;
            return in.times(weights[i], r, n - (i == 0 ? 0 : i == 1 ? a : ab));
        },
        "linear", report);
}

void check_gates(const KernelSet& set, const Input& in, const Either& gate, const Either& up, Report& report) {
    const long width = gate.outputs();
    check_call(
        set, in.rows, width,
        [&](Kernels& k, long rows, float* out) { geglu_linear(k, in.first(rows), gate.weight, up.weight, out); },
        [&](long r, long n) { return gated(in.times(gate, r, n), in.times(up, r, n)); }, "geglu_linear", report);
    Random random(9);
    const std::vector<float> vectors = random.floats(in.rows * (width + 5));
    check_call(
        set, in.rows, width,
        [&](Kernels& k, long rows, float* out) {
            gated_linear(k, in.first(rows), gate.weight, vectors.data(), width + 5, out);
        },
        [&](long r, long n) {
            return gated(in.times(gate, r, n), {vectors[static_cast<std::size_t>(r * (width + 5) + n)], 0});
        },
        "gated_linear", report);
}

// The product with the rows in 16 bits.
void check_words(const KernelSet& set, const Input& in, const Either& weight, Report& report) {
    const InWords words(set, in.x, kCols);
    check_call(
        set, in.rows, weight.outputs(),
        [&](Kernels& k, long rows, float* out) { fine_linear(k, in.first(rows), weight.weight, out); },
        [&](long r, long n) { return weight.matrix->times(words.view, r, n); }, "fine_linear in words", report);
}

// The product with the rows as int8, and with what that rounding left of them.
void check_fine(const KernelSet& set, const Input& in, const Either& weight, Report& report) {
    if (set.matmul.words && weight.matrix && weight.matrix->layout.format.bits == 8)
        return check_words(set, in, weight, report);
    const Quantised halves = Quantised::fine(set, in.x, kCols);
    check_call(
        set, in.rows, weight.outputs(),
        [&](Kernels& k, long rows, float* out) { fine_linear(k, in.first(rows), weight.weight, out); },
        [&](long r, long n) {
            if (!weight.matrix) return in.times(weight, r, n);
            const Value first = weight.matrix->times(halves.view, r, n);
            const Value rest = weight.matrix->times(halves.view, in.rows + r, n);
            const double value = first.value + rest.value;
            return Value{value, first.error + rest.error + std::fabs(value) * 0x1p-24};
        },
        "fine_linear", report);
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
    check_call(
        set, in.rows, width,
        [&](Kernels& k, long rows, float* out) {
            const bool in_place = rows % 2;
            if (in_place) std::copy_n(residual.data(), rows * width, out);
            add_linear(k, in.first(rows), weight.weight, post.data(), kEps, 0.5f, in_place ? out : residual.data(),
                       out);
        },
        [&](long r, long n) {
            const auto at = static_cast<std::size_t>(r * width + n);
            const double scale = scales[static_cast<std::size_t>(r)];
            const double normed = products[at] * scale * post[static_cast<std::size_t>(n)];
            const double error = errors[at] * scale + 1e-5 * (std::fabs(normed) + std::fabs(residual[at]) + 1);
            return Value{(residual[at] + normed) * 0.5, error};
        },
        "add_linear", report);
}

// The two calls it stands for, to the bit, however many rows there are.
void check_mlp(const KernelSet& set, const Input& in, const Mlp& weights, Report& report) {
    Random random(11);
    const long width = weights.gate->layout.rows, outputs = weights.down->layout.rows;
    const std::vector<float> residual = random.floats(in.rows * outputs, 4), post = random.floats(outputs);
    std::vector<float> inner(static_cast<std::size_t>(in.rows * width)), want(residual.size()), got(residual.size());
    Kernels k(set, 3);
    const Changes none[3] = {};
    geglu_linear(k, in.first(in.rows), *weights.gate, *weights.up, inner.data());
    add_linear(k, {inner.data(), in.rows, width, nullptr, 0}, *weights.down, post.data(), kEps, 0.5f, residual.data(),
               want.data());
    mlp(k, in.first(in.rows), weights, post.data(), kEps, 0.5f, residual.data(), got.data(), none);
    for (std::size_t i = 0; i < got.size(); ++i)
        report.expect(same(got[i], want[i]), "mlp: number %zu is %.9g, not %.9g", i, got[i], want[i]);
}

}  // namespace

void check_linear(const KernelSet& set, Report& report, bool quick) {
    Random random(7);
    const Either weights[3] = {
        {random, "Q4_K", quick ? 150 : 300, kCols}, {random, "Q6_K", 33, kCols}, {random, nullptr, 21, kCols}};
    const Either wide(random, "Q4_0", 160, kCols), down(random, "Q6_K", 75, 256), short_down(random, "Q4_0", 75, 160);
    const Either opened(random, "Q5_K", 256, kCols), flat(random, nullptr, 160, kCols);
    const Either gate(random, "Q5_K", 75, kCols), up(random, "Q8_0", 75, kCols), plain(random, nullptr, 75, kCols);
    const Either steps(random, "IQ4_XS", 23, kCols);
    for (const long rows : {2l, 9l, quick ? 45l : 70l}) {
        const std::vector<float> x = random.floats(rows * kCols, 3);
        const Input in(set, x, random.floats(kCols, 2), kCols), bare(set, x, {}, kCols);
        report.in(std::string(set.name) + " linear, " + std::to_string(rows) + " rows");
        check_three(set, in, weights, report);
        check_three(set, bare, weights, report);
        check_gates(set, in, gate, up, report);
        check_gates(set, bare, gate, plain, report);
        check_gates(set, in, plain, plain, report);
        check_add(set, bare, gate, report);
        check_add(set, bare, plain, report);
        check_mlp(set, in, {&wide.weight, &wide.weight, &short_down.weight}, report);
        check_mlp(set, in, {&opened.weight, &opened.weight, &down.weight}, report);
        check_mlp(set, bare, {&wide.weight, &flat.weight, &short_down.weight}, report);
        for (const Either* weight : {&weights[0], &weights[1], &up, &steps, &plain})
            check_fine(set, bare, *weight, report);
    }
}

}  // namespace pocketgem::check
