// Row functions between matrix products.
namespace pocketgem {
namespace {

using namespace simd;

// ---- exponentials ---------------------------------------------------------------------------------------------------

// x = n + f with n whole and f within [-1/2, 1/2]; 2^f - 1 and 2^n.
struct Power {
    F fraction;  // 2^f - 1
    F whole;     // 2^n; 0 for n = -127, infinity for n = 128
};

// x within [-127, 128], or NaN. The polynomial is the least-error one of its degree, within 2e-9 of 2^f.
inline Power power_of_two(F x) {
    const F round = set(0x1.8p23f);  // added, it leaves the nearest whole number in the low bits
    const F shifted = x + round;
    const F f = x - (shifted - round);
    F p = set(1.5353361e-4f);
    p = fma(p, f, set(1.3398874e-3f));
    p = fma(p, f, set(9.6184374e-3f));
    p = fma(p, f, set(5.5503325e-2f));
    p = fma(p, f, set(2.4022648e-1f));
    p = fma(p, f, set(6.9314720e-1f));
    return {p * f, float_of_bits(shift_left<23>(bits_of(shifted)) + set_i(127 << 23))};
}

// 2^x: 0 up to -127, infinity from 128 on. The limits come first, because `larger` and `smaller` then keep a NaN.
inline F exp2_of(F x) {
    const Power power = power_of_two(smaller(set(128.0f), larger(set(-127.0f), x)));
    return (power.fraction + set(1.0f)) * power.whole;
}

constexpr float kLog2E = 1.44269504f;

// tanh(x) = e / (e + 2) with e = exp(2 x) - 1, which keeps its digits where x is small.
inline F tanh_of(F x) {
    const Power power = power_of_two(smaller(set(40.0f), larger(set(-40.0f), x * set(2.0f * kLog2E))));
    const F e = fma(power.whole, power.fraction, power.whole - set(1.0f));
    return e / (e + set(2.0f));
}

// gelu(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
inline F gelu(F x) {
    constexpr float factor = -2.0f * 0.79788456f * kLog2E;
    const F power = x * fma(x * x, set(factor * 0.044715f), set(factor));
    return x / (set(1.0f) + exp2_of(power));
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Sixteen floats of a row, and what is left at its end.
struct Whole {
    F load(const float* p) const { return simd::load(p); }
    void store(float* p, F x) const { simd::store(p, x); }
};
struct Part {
    int n;
    F load(const float* p) const { return load_some(p, n); }
    void store(float* p, F x) const { store_some(p, x, n); }
};

template <typename Each>
inline void along(long n, const Each& each) {
    long i = 0;
    for (; i + 16 <= n; i += 16) each(i, Whole{});
    if (i < n) each(i, Part{static_cast<int>(n - i)});
}

inline float inverse_rms(const float* x, long n, float eps) {
    F sums[4] = {zeros(), zeros(), zeros(), zeros()};
    const long fours = n / 64 * 64;
    for (long i = 0; i < fours; i += 64)
        for (int j = 0; j < 4; ++j) {
            const F value = load(x + i + 16 * j);
            sums[j] = fma(value, value, sums[j]);
        }
    along(n - fours, [&](long i, auto at) {
        const F value = at.load(x + fours + i);
        sums[0] = fma(value, value, sums[0]);
    });
    const float squares = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
}

void norm_row(const float* x, const float* weight, float* out, long n, float eps) {
    const F scale = set(inverse_rms(x, n, eps));
    along(n, [&](long i, auto at) {
        const F normed = at.load(x + i) * scale;
        at.store(out + i, weight ? normed * at.load(weight + i) : normed);
    });
}

void add_norm_row(float* x, const float* y, const float* weight, long n, float eps, float factor) {
    const F scale = set(inverse_rms(y, n, eps)), times = set(factor);
    along(n, [&](long i, auto at) {
        const F normed = at.load(y + i) * scale;
        at.store(x + i, (at.load(x + i) + (weight ? normed * at.load(weight + i) : normed)) * times);
    });
}

void geglu_row(const float* gate, const float* up, float* out, long n) {
    along(n, [&](long i, auto at) { at.store(out + i, gelu(at.load(gate + i)) * at.load(up + i)); });
}

void softcap_row(float* x, long n, float cap) {
    const F by = set(1.0f / cap), times = set(cap);
    along(n, [&](long i, auto at) { at.store(x + i, tanh_of(at.load(x + i) * by) * times); });
}

void add_row(float* x, const float* y, long n) {
    along(n, [&](long i, auto at) { at.store(x + i, at.load(x + i) + at.load(y + i)); });
}

// The row is read once: its largest block is remembered, and only that one is searched. A number that is not finite
// makes a NaN of zero.
Peak peak_row(const float* x, long n) {
    constexpr long kBlock = 1024;
    const F low = set(-__builtin_inff());
    F odd[4] = {zeros(), zeros(), zeros(), zeros()};
    float rest = 0;
    Peak best{-__builtin_inff(), 0, false};
    for (long from = 0; from < n; from += kBlock) {
        const long to = n - from < kBlock ? n : from + kBlock, fours = from + (to - from) / 64 * 64;
        F tops[4] = {low, low, low, low};
        for (long i = from; i < fours; i += 64)
            for (int j = 0; j < 4; ++j) {
                const F value = load(x + i + 16 * j);
                tops[j] = larger(tops[j], value);
                odd[j] = fma(value, zeros(), odd[j]);
            }
        float lanes[16], top = best.value;
        store(lanes, larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
        for (const float lane : lanes) top = lane > top ? lane : top;
        for (long i = fours; i < to; ++i) {
            top = x[i] > top ? x[i] : top;
            rest += x[i] * 0.0f;
        }
        if (top > best.value) best = {top, from, false};
    }
    while (best.at + 1 < n && x[best.at] != best.value) ++best.at;
    best.finite = sum((odd[0] + odd[1]) + (odd[2] + odd[3])) + rest == 0;
    return best;
}

constexpr ElementKernels kElement = {norm_row, add_norm_row, geglu_row, softcap_row, add_row, peak_row};

}  // namespace
}  // namespace pocketgem
