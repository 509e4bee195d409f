// What the checks share: a count of failures, numbers that look random, and memory that shows a write too far.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../kernel_set.h"

namespace pocketgem::check {

// Prints what fails, the first of it in full.
class Report {
public:
    void in(std::string what) { where_ = std::move(what); }
    const std::string& where() const { return where_; }
    long failures() const { return failures_; }
    long checked() const { return checked_; }

    [[gnu::format(printf, 3, 4)]] bool expect(bool good, const char* format, ...) {
        ++checked_;
        if (good) return true;
        if (++failures_ > kShown) return false;
        std::printf("FAIL %s: ", where_.c_str());
        va_list values;
        va_start(values, format);
        std::vprintf(format, values);
        va_end(values);
        std::printf("\n");
        return false;
    }

private:
    static constexpr long kShown = 20;
    std::string where_;
    long failures_ = 0, checked_ = 0;
};

// splitmix64: the same numbers on every machine.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint32_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return static_cast<std::uint32_t>(z >> 32);
    }
    long below(long n) { return static_cast<long>(bits() % static_cast<std::uint64_t>(n)); }
    float unit() { return static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f; }  // [-1, 1)
    std::vector<float> floats(long n, float times = 1) {
        std::vector<float> all(static_cast<std::size_t>(n));
        for (float& x : all) x = unit() * times;
        return all;
    }

private:
    std::uint64_t state_;
};

inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }
inline bool near(double got, double want, double error) {
    if (std::isnan(want)) return std::isnan(got);
    return std::fabs(got - want) <= error;
}

// Results [rows, stride] whose untouched numbers can be told from results.
struct Results {
    static constexpr std::uint32_t kUntouched = 0x7fc0dea1u;
    long rows, stride;
    std::vector<float> values;

    Results(long rows, long stride)
        : rows(rows), stride(stride), values(static_cast<std::size_t>(rows * stride), float_of(kUntouched)) {}
    float* at(long row, long column) { return values.data() + row * stride + column; }
    bool untouched(long row, long column) { return bits_of(*at(row, column)) == kUntouched; }
};

void check_pool(Report& report, bool quick);
void check_trial(Report& report);
void check_quantize(const KernelSet& set, Report& report);
void check_matmul(const KernelSet& set, Report& report, bool quick);
void check_dense(const KernelSet& set, Report& report);
void check_linear(const KernelSet& set, Report& report, bool quick);
void check_lowrank(const KernelSet& set, Report& report);
void check_experts(const KernelSet& set, Report& report, bool quick);
void check_elements(const KernelSet& set, Report& report);
void check_attention(const KernelSet& set, Report& report, bool quick);

}  // namespace pocketgem::check
