#include <algorithm>

#include "../experts.h"
#include "products.h"

namespace pocketgem::check {
namespace {

constexpr long kHidden = 96, kWidth = 64;

// The routed experts of one layer, and who chose whom.
struct Layer {
    std::vector<Either> gates, ups, downs;
    std::vector<Expert> experts;
    std::vector<std::int64_t> chosen;
    std::vector<float> shares;
    long top;

    // Every row chooses different experts: some are chosen by many rows, some by few, the last by nobody.
    Layer(Random& random, const char* type, long count, long top, long rows)
        : shares(random.floats(rows * top)), top(top) {
        for (long e = 0; e < count; ++e) {
            gates.emplace_back(random, type, kWidth, kHidden);
            ups.emplace_back(random, type, kWidth, kHidden);
            downs.emplace_back(random, type, kHidden, kWidth);
        }
        for (std::size_t e = 0; e < gates.size(); ++e)
            experts.push_back({&gates[e].weight, &ups[e].weight, &downs[e].weight});
        for (long r = 0; r < rows; ++r) {
            const long first = random.below(1 + random.below(count - 1));
            for (long c = 0; c < top; ++c) chosen.push_back((first + 2 * c) % (count - 1));
        }
    }
    long count() const { return static_cast<long>(experts.size()); }
    long expert(long row, long choice) const { return chosen[static_cast<std::size_t>(row * top + choice)]; }
};

// What enters the down matrix of every (row, choice), one after another: geglu_linear is checked by itself, and its
// bits do not depend on who else is computed.
Input halfway(const KernelSet& set, const Layer& layer, const Input& in) {
    std::vector<float> inner(static_cast<std::size_t>(in.rows * layer.top * kWidth));
    Kernels kernels(set, 1);
    for (long r = 0; r < in.rows; ++r)
        for (long c = 0; c < layer.top; ++c) {
            const Expert& expert = layer.experts[static_cast<std::size_t>(layer.expert(r, c))];
            const Rows row{in.x.data() + r * kHidden, 1, kHidden, nullptr, 0};
            geglu_linear(kernels, row, *expert.gate, *expert.up, inner.data() + (r * layer.top + c) * kWidth);
        }
    return {set, inner, {}, kWidth};
}

void check_layer(const KernelSet& set, const char* type, long rows, Report& report) {
    Random random(static_cast<std::uint64_t>(20 + rows));
    const long top = rows % 2 ? 1 : 3;
    const Layer layer(random, type, 8, top, rows);
    const Input in(set, random.floats(rows * kHidden, 3), {}, kHidden), inner = halfway(set, layer, in);
    check_call(
        set, rows, kHidden,
        [&](Kernels& k, long count, float* out) {
            run_experts(k, in.x.data(), count, layer.experts.data(), layer.count(),
                        {layer.chosen.data(), layer.shares.data(), top}, out);
        },
        [&](long r, long n) {
            Value sum;
            for (long c = 0; c < top; ++c) {
                const Either& down = layer.downs[static_cast<std::size_t>(layer.expert(r, c))];
                const Value product = inner.times(down, r * top + c, n);
                const double share = layer.shares[static_cast<std::size_t>(r * top + c)];
                sum.value += share * product.value;
                sum.error += std::fabs(share) * (product.error + std::fabs(product.value) * 8 * 0x1p-24);
            }
            return sum;
        },
        "run_experts", report);
}

// Experts that are in memory one after another, `batch` at a time, give the bits of all at once.
void check_batches(const KernelSet& set, const char* type, long rows, long batch, Report& report) {
    Random random(static_cast<std::uint64_t>(70 + rows));
    const Layer layer(random, type, 8, 3, rows);
    const std::vector<float> x = random.floats(rows * kHidden, 3);
    const Choices choices{layer.chosen.data(), layer.shares.data(), layer.top};
    Kernels kernels(set, 3);
    Results all(rows, kHidden), some(rows, kHidden), products(rows * layer.top, kHidden);
    run_experts(kernels, x.data(), rows, layer.experts.data(), layer.count(), choices, all.at(0, 0));
    for (long first = 0; first < layer.count(); first += batch) {
        std::vector<Expert> present(layer.experts.size(), Expert{nullptr, nullptr, nullptr});
        for (long e = first; e < std::min(layer.count(), first + batch); ++e)
            present[static_cast<std::size_t>(e)] = layer.experts[static_cast<std::size_t>(e)];
        run_present(kernels, x.data(), rows, present.data(), layer.count(), choices, products.at(0, 0));
        for (long pair = 0; pair < rows * layer.top; ++pair)
            report.expect(
                products.untouched(pair, 0) == (layer.chosen[static_cast<std::size_t>(pair)] >= first + batch),
                "run_present, experts from %ld: pair %ld", first, pair);
    }
    mix_products(kernels, products.at(0, 0), rows, kHidden, choices, some.at(0, 0));
    for (long i = 0; i < rows * kHidden; ++i)
        report.expect(same(some.values[static_cast<std::size_t>(i)], all.values[static_cast<std::size_t>(i)]),
                      "batches of %ld: number %ld differs", batch, i);
}

}  // namespace

void check_experts(const KernelSet& set, Report& report, bool quick) {
    for (const char* type : {"Q4_0", "Q8_0", static_cast<const char*>(nullptr)})
        for (const long rows : {1l, 6l, quick ? 120l : 250l}) {
            report.in(std::string(set.name) + " experts, " + (type ? type : "plain") + ", " + std::to_string(rows) +
                      " rows");
            check_layer(set, type, rows, report);
            for (const long batch : {1l, 3l}) check_batches(set, type, rows, batch, report);
        }
}

}  // namespace pocketgem::check
