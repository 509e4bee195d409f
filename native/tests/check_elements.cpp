#include <algorithm>
#include <limits>

#include "reference.h"

namespace pocketgem::check {
namespace {

std::vector<double> normed(const std::vector<float>& x, const float* weight, double eps) {
    std::vector<double> out(x.begin(), x.end());
    const double scale = inverse_rms(out.data(), static_cast<long>(out.size()), eps);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] *= scale * (weight ? weight[i] : 1.0f);
    return out;
}

void expect_near(const std::vector<float>& got, const std::vector<double>& want, double relative, double absolute,
                 const char* what, Report& report) {
    for (std::size_t i = 0; i < want.size(); ++i)
        report.expect(near(got[i], want[i], std::fabs(want[i]) * relative + absolute),
                      "%s: number %zu is %.9g, not %.9g", what, i, got[i], want[i]);
}

void check_norms(const ElementKernels& element, Random& random, long n, float size, Report& report) {
    const std::vector<float> x = random.floats(n, size), y = random.floats(n, size), weight = random.floats(n, 2);
    for (const float* w : {weight.data(), static_cast<const float*>(nullptr)}) {
        std::vector<float> out(x.size()), sum = x;
        element.norm(x.data(), w, out.data(), n, 1e-6f);
        expect_near(out, normed(x, w, 1e-6f), 2e-6, 1e-30, "norm", report);
        element.add_norm(sum.data(), y.data(), w, n, 1e-6f, 0.75f);
        std::vector<double> want = normed(y, w, 1e-6f);
        for (std::size_t i = 0; i < want.size(); ++i) want[i] = (x[i] + want[i]) * 0.75f;
        expect_near(sum, want, 2e-6, 1e-5 * (size + 1), "add_norm", report);
    }
}

void check_gates(const ElementKernels& element, Random& random, long n, float size, Report& report) {
    const std::vector<float> x = random.floats(n, size), y = random.floats(n);
    std::vector<float> out(x.size()), capped = x, sum = x;
    std::vector<double> gated, caps, sums;
    for (std::size_t i = 0; i < x.size(); ++i) {
        gated.push_back(gelu(x[i]) * y[i]);
        caps.push_back(30.0 * std::tanh(x[i] / 30.0));
        sums.push_back(static_cast<float>(x[i] + y[i]));
    }
    element.geglu(x.data(), y.data(), out.data(), n);
    expect_near(out, gated, 2e-6, 1e-6, "geglu", report);
    element.softcap(capped.data(), n, 30.0f);
    expect_near(capped, caps, 2e-6, 1e-30, "softcap", report);
    element.add(sum.data(), y.data(), n);
    expect_near(sum, sums, 0, 0, "add", report);
    std::vector<float> in_place = y;
    element.geglu(x.data(), in_place.data(), in_place.data(), n);
    for (std::size_t i = 0; i < x.size(); ++i)
        report.expect(same(in_place[i], out[i]), "geglu in place: number %zu is %.9g, not %.9g", i, in_place[i],
                      out[i]);
}

void check_peaks(const ElementKernels& element, Random& random, long n, Report& report) {
    std::vector<float> x = random.floats(n, 3.0f);
    const auto first = [&] { return std::max_element(x.begin(), x.end()) - x.begin(); };
    const auto found = [&] { return element.peak(x.data(), n); };
    report.expect(found().finite && found().at == first(), "peak at %ld, not %ld", found().at, first());
    for (float& value : x) value = -std::fabs(std::round(value));  // many equal ones, none above zero
    report.expect(found().finite && found().at == first(), "of equal peaks %ld, not %ld", found().at, first());
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()})
        for (const long at : {0l, n / 2, n - 1}) {
            const float before = x[static_cast<std::size_t>(at)];
            x[static_cast<std::size_t>(at)] = bad;
            report.expect(!found().finite, "%g at %ld of %ld passes for finite", bad, at, n);
            x[static_cast<std::size_t>(at)] = before;
        }
}

void check_limits(const ElementKernels& element, Report& report) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> gate = {kNan, 1, 1e30f, 100, kInfinity, -100, 0}, up = {1, kNan, 1, 1, 1, 1, 1};
    const std::vector<float> want = {kNan, kNan, 1e30f, 100, kInfinity, 0, 0}, cap = {kNan, 1e30f, -kInfinity, 0};
    const std::vector<float> capped = {kNan, 5, -5, 0};
    std::vector<float> out(gate.size()), x = cap;
    element.geglu(gate.data(), up.data(), out.data(), static_cast<long>(gate.size()));
    expect_near(out, {want.begin(), want.begin() + 4}, 1e-6, 1e-30, "geglu at the limits", report);
    report.expect(out[4] == kInfinity && out[5] == 0 && out[6] == 0, "geglu of infinity, -100, 0: %g %g %g", out[4],
                  out[5], out[6]);
    element.softcap(x.data(), static_cast<long>(x.size()), 5.0f);
    expect_near(x, {capped.begin(), capped.end()}, 1e-6, 0, "softcap at the limits", report);
    std::vector<float> row(40, 1.0f);
    row[37] = kNan;
    element.norm(row.data(), nullptr, row.data(), 40, 1e-6f);
    for (const float value : row) report.expect(std::isnan(value), "norm of a row with a NaN gives %g", value);
}

}  // namespace

void check_elements(const KernelSet& set, Report& report) {
    Random random(5);
    for (const long n : {1l, 2l, 15l, 16l, 17l, 31l, 63l, 64l, 65l, 100l, 128l, 640l, 1000l})
        for (const float size : {1e-3f, 1.0f, 50.0f}) {
            report.in(std::string(set.name) + " elements, n = " + std::to_string(n) + ", size " + std::to_string(size));
            check_norms(set.element, random, n, size, report);
            check_gates(set.element, random, n, size, report);
        }
    for (const long n : {1l, 2l, 63l, 64l, 65l, 127l, 1023l, 1024l, 1025l, 5000l}) {
        report.in(std::string(set.name) + " peaks, n = " + std::to_string(n));
        for (int round = 0; round < 20; ++round) check_peaks(set.element, random, n, report);
    }
    report.in(std::string(set.name) + " elements");
    check_limits(set.element, report);
}

}  // namespace pocketgem::check
