#include <algorithm>

#include "reference.h"

namespace pocketgem::check {
namespace {

constexpr float kEps = 1e-6f;

struct Shape {
    long heads, kv_heads, dim, window;
};

std::vector<std::uint16_t> bfloats(Random& random, long n) {
    std::vector<std::uint16_t> all;
    for (long i = 0; i < n; ++i) all.push_back(static_cast<std::uint16_t>(bits_of(random.unit()) >> 16));
    return all;
}

// x [dim] normed and turned: pairs (i, i + dim / 2) by the row's angle i.
std::vector<double> turned(const float* x, const std::vector<float>& norm, const float* cos, const float* sin) {
    std::vector<double> out(x, x + norm.size());
    const auto dim = out.size(), half = dim / 2;
    const double scale = inverse_rms(out.data(), static_cast<long>(dim), kEps);
    for (std::size_t i = 0; i < dim; ++i) out[i] *= scale * norm[i];
    for (std::size_t i = 0; i < half; ++i) {
        const double a = out[i], b = out[half + i];
        out[i] = a * cos[i] - b * sin[i];
        out[half + i] = b * cos[i] + a * sin[i];
    }
    return out;
}

// Two sequences in one call: their rows, angles, keys and values.
struct Call {
    Shape shape;
    long rows;
    std::vector<float> q, norm, cos, sin;
    std::vector<std::int64_t> positions, last;
    std::vector<std::uint16_t> k[2], v[2];
    KeySpan spans[2];

    // `keys`, and the position of the first: the last rows of each sequence are its last positions.
    // With `blocks` most rows see on to the end of their nine.
    Call(Random& random, const Shape& shape, const long (&counts)[2], const long (&keys)[2], long first,
         bool blocks = false)
        : shape(shape),
          rows(counts[0] + counts[1]),
          q(random.floats(rows * shape.heads * shape.dim)),
          norm(random.floats(shape.dim, 2)) {
        for (long i = 0; i < rows * shape.dim / 2; ++i) {
            const float angle = random.unit() * 3;
            cos.push_back(std::cos(angle)), sin.push_back(std::sin(angle));
        }
        for (int s = 0; s < 2; ++s) {
            const long from = s ? first : 0, start = s ? counts[0] : 0;
            k[s] = bfloats(random, keys[s] * shape.kv_heads * shape.dim);
            v[s] = bfloats(random, keys[s] * shape.kv_heads * shape.dim);
            spans[s] = {start, start + counts[s], k[s].data(), v[s].data(), from, keys[s]};
            const long rest = from + keys[s] - counts[s];
            for (long r = 0; r < counts[s]; ++r) {
                positions.push_back(rest + r);
                last.push_back(blocks && r % 5 ? rest + std::min(r / 9 * 9 + 8, counts[s] - 1) : rest + r);
            }
        }
    }
    Queries queries(float* out) const {
        return {q.data(),    norm.data(),    kEps,      cos.data(),   sin.data(), {positions.data(), last.data()},
                shape.heads, shape.kv_heads, shape.dim, shape.window, 0.3f,       out};
    }
};

std::vector<double> attended(const Call& a, const KeySpan& span, long row, long head) {
    const long dim = a.shape.dim, kv_head = head / (a.shape.heads / a.shape.kv_heads), half = dim / 2;
    const std::vector<double> q = turned(a.q.data() + (row * a.shape.heads + head) * dim, a.norm,
                                         a.cos.data() + row * half, a.sin.data() + row * half);
    std::vector<double> out(static_cast<std::size_t>(dim)), scores;
    const long at = a.positions[static_cast<std::size_t>(row)], last = a.last[static_cast<std::size_t>(row)];
    const long oldest = std::max(span.first, a.shape.window ? at - a.shape.window + 1 : span.first);
    const auto number = [&](const std::uint16_t* all, long key, long d) {
        return bfloat(all[((key - span.first) * a.shape.kv_heads + kv_head) * dim + d]);
    };
    double most = -1e300, total = 0;
    for (long key = oldest; key <= last; ++key) {
        double score = 0;
        for (long d = 0; d < dim; ++d) score += q[static_cast<std::size_t>(d)] * number(span.k, key, d);
        scores.push_back(score * static_cast<double>(0.3f));
        most = std::max(most, scores.back());
    }
    for (double& score : scores) score = std::exp(score - most), total += score;
    for (long key = oldest; key <= last; ++key) {
        const double share = scores[static_cast<std::size_t>(key - oldest)] / total;
        for (long d = 0; d < dim; ++d) out[static_cast<std::size_t>(d)] += share * number(span.v, key, d);
    }
    return out;
}

void check_call(const KernelSet& set, const Call& call, Report& report) {
    const long width = call.shape.heads * call.shape.dim;
    Results all(call.rows, width), alone(call.rows, width);
    Kernels kernels(set, 3), one(set, 1);
    attend(kernels, call.queries(all.at(0, 0)), call.spans, 2);
    for (const KeySpan& span : call.spans) {
        attend(one, call.queries(alone.at(0, 0)), &span, 1);
        for (long r = span.start; r < span.stop; ++r)
            for (long n = 0; n < width; ++n)
                report.expect(same(*all.at(r, n), *alone.at(r, n)),
                              "row %ld number %ld: %.9g with another sequence, %.9g alone", r, n, *all.at(r, n),
                              *alone.at(r, n));
        for (long r = span.start; r < span.stop; r += std::max(1l, (span.stop - span.start) / 7))
            for (long head = 0; head < call.shape.heads; ++head) {
                const std::vector<double> want = attended(call, span, r, head);
                for (long d = 0; d < call.shape.dim; ++d) {
                    const double got = *all.at(r, head * call.shape.dim + d);
                    const double wanted = want[static_cast<std::size_t>(d)];
                    report.expect(near(got, wanted, 2e-5), "row %ld head %ld number %ld is %.9g, not %.9g", r, head, d,
                                  got, wanted);
                }
            }
    }
}

void expect_bfloats(const std::vector<std::uint16_t>& got, std::size_t at, const std::vector<double>& want,
                    const char* what, Report& report) {
    for (std::size_t i = 0; i < want.size(); ++i) {
        const double error = std::fabs(want[i]) * 0x1.01p-8 + 1e-5;  // half a step of bfloat16, and the float's error
        report.expect(near(bfloat(got[at + i]), want[i], error), "%s: number %zu is %g, not %g", what, i,
                      bfloat(got[at + i]), want[i]);
    }
}

void check_keys(const KernelSet& set, const Shape& shape, long rows, bool normed_values, Report& report) {
    Random random(12);
    const long width = shape.kv_heads * shape.dim, half = shape.dim / 2, split = rows / 3;
    const std::vector<float> k = random.floats(rows * width), v = random.floats(rows * width);
    const std::vector<float> norm = random.floats(shape.dim);
    const std::vector<float> cos = random.floats(rows * half), sin = random.floats(rows * half);
    const std::vector<float> ones(static_cast<std::size_t>(shape.dim), 1), still(static_cast<std::size_t>(half), 1);
    const std::vector<float> none(static_cast<std::size_t>(half), 0);
    std::vector<std::uint16_t> out_k(k.size()), out_v(v.size());
    const KeyTarget targets[2] = {{0, split, out_k.data(), out_v.data()},
                                  {split, rows, out_k.data() + split * width, out_v.data() + split * width}};
    Kernels kernels(set, 2);
    const NewKeys keys{k.data(),   v.data(),   norm.data(),    kEps,     normed_values,
                       cos.data(), sin.data(), shape.kv_heads, shape.dim};
    write_keys(kernels, keys, targets, 2);
    for (long i = 0; i < rows * shape.kv_heads; ++i) {
        const long row = i / shape.kv_heads, at = i * shape.dim;
        const float *cos_of_row = cos.data() + row * half, *sin_of_row = sin.data() + row * half;
        expect_bfloats(out_k, static_cast<std::size_t>(at), turned(k.data() + at, norm, cos_of_row, sin_of_row), "key",
                       report);
        const std::vector<double> value = normed_values ? turned(v.data() + at, ones, still.data(), none.data())
                                                        : std::vector<double>(v.data() + at, v.data() + at + shape.dim);
        expect_bfloats(out_v, static_cast<std::size_t>(at), value, "value", report);
    }
}

}  // namespace

void check_attention(const KernelSet& set, Report& report, bool quick) {
    const Shape shapes[] = {{4, 1, 64, 0},   {8, 2, 32, 20}, {3, 1, 96, 0},
                            {2, 2, 128, 70}, {15, 1, 32, 1}, {8, 1, 256, 300}};
    for (const Shape& shape : shapes) {
        if (quick && shape.dim > 128) continue;
        Random random(11);
        report.in(std::string(set.name) + " attention, heads " + std::to_string(shape.heads) + "/" +
                  std::to_string(shape.kv_heads) + ", dim " + std::to_string(shape.dim) + ", window " +
                  std::to_string(shape.window));
        check_call(set, Call(random, shape, {1, 40}, {7, 131}, 5), report);
        check_call(set, Call(random, shape, {3, 2}, {600, 300}, 77), report);
        check_call(set, Call(random, shape, {5, 17}, {5, 17}, 0), report);
        check_call(set, Call(random, shape, {3, 40}, {60, 131}, 5, true), report);
        check_keys(set, shape, 5, false, report);
        check_keys(set, shape, quick ? 9 : 200, true, report);
    }
}

}  // namespace pocketgem::check
