#include <algorithm>
#include <limits>

#include "reference.h"

namespace pocketgem::check {
namespace {

constexpr long kRows = 40;  // of activations
constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of everything that may come: a NaN, an infinity, zeros, and sizes from subnormal to nearly too large.
std::vector<float> activations(Random& random, long rows, long cols) {
    std::vector<float> x;
    const float sizes[] = {1e24f, 1e-30f, 1e-36f, 3e-37f, 1.3e-38f, 1e-39f, 1e-44f, 0.0f};
    for (long row = 0; row < rows; ++row) {
        const bool odd = row >= 7 && row < 7 + 16 && row % 2;
        const float size = odd ? sizes[(row - 7) / 2] : std::ldexp(1.0f, static_cast<int>(random.below(20)) - 10);
        for (long c = 0; c < cols; ++c) x.push_back(random.unit() * size);
    }
    if (rows > 3) x[static_cast<std::size_t>(3 * cols + random.below(cols))] = kNan;
    if (rows > 5) x[static_cast<std::size_t>(5 * cols + random.below(cols))] = -kInfinity;
    return x;
}

void check_sums(const Quantised& to, long block, Report& report) {
    const auto b = static_cast<std::size_t>(block);
    int sums[2] = {};
    for (std::size_t i = 0; i < 32; ++i) sums[i / 16] += to.q[32 * b + i];
    const int low = to.sums16[2 * b], high = to.sums16[2 * b + 1], both = to.sums32[b];
    report.expect(low == sums[0] && high == sums[1] && both == sums[0] + sums[1],
                  "sums %d %d %d are not those of q: %d %d", low, high, both, sums[0], sums[1]);
}

void check_block(const float* x, const Quantised& to, long block, Report& report) {
    const std::int8_t* q = to.q.data() + block * 32;
    const float scale = to.scale[static_cast<std::size_t>(block)];
    float most = 0;
    bool finite = true;
    int largest = 0;
    for (int i = 0; i < 32; ++i) {
        finite = finite && std::isfinite(x[i]);
        most = std::max(most, std::fabs(x[i]));
        largest = std::max(largest, std::abs(static_cast<int>(q[i])));
    }
    check_sums(to, block, report);
    if (!finite) return void(report.expect(std::isnan(scale), "a block with NaN or infinity has scale %g", scale));
    const bool tiny = most < 4e-37f;
    report.expect(near(scale, most / 127.0, most * 1e-7 + 1e-44), "scale %g, largest %g", scale, most);
    report.expect(largest == 127 || (largest == 0 && tiny), "largest q %d where the largest is %g", largest, most);
    for (int i = 0; i < 32; ++i)
        report.expect(near(q[i] * static_cast<double>(scale), x[i], std::max(scale * 0.5001, tiny ? most : 0.0)),
                      "%g became %d times %g", x[i], q[i], scale);
}

// Two blocks that hold x together, the second in steps 254 times finer; where the first keeps nothing, or a NaN, the
// second is zero.
void check_rest(const float* x, const Quantised& both, long block, long rest, Report& report) {
    const std::int8_t *first = both.q.data() + 32 * block, *second = both.q.data() + 32 * rest;
    const double scale = both.scale[static_cast<std::size_t>(block)], fine = both.scale[static_cast<std::size_t>(rest)];
    check_sums(both, rest, report);
    const bool kept = scale >= 1e-37;  // no NaN is
    report.expect(near(fine, kept ? scale / 254 : 0, kept ? scale * 1e-7 : 0), "scale %g, of the rest %g", scale, fine);
    for (int i = 0; i < 32 && kept; ++i) {
        const int q = first[i], r = second[i];
        report.expect(near(q * scale + r * fine, x[i], fine * 0.51), "%g became %d times %g and %d times %g", x[i], q,
                      scale, r, fine);
    }
}

// A block in 16 bits: of their steps, and NaN like one in 8.
void check_word_block(const float* x, const InWords& to, long block, Report& report) {
    const double scale = to.scale[static_cast<std::size_t>(block)];
    const std::int16_t* q = to.q.data() + 32 * block;
    float most = 0;
    bool finite = true;
    for (int i = 0; i < 32; ++i) finite = finite && std::isfinite(x[i]), most = std::max(most, std::fabs(x[i]));
    if (!finite) return void(report.expect(std::isnan(scale), "a block with NaN or infinity has scale %g", scale));
    const bool tiny = most < 2e-34f;
    report.expect(near(scale, most / 32767.0, most * 1e-7 + 1e-44), "scale %g, largest %g", scale, most);
    for (int i = 0; i < 32; ++i)
        report.expect(near(q[i] * scale, x[i], std::max(scale * 0.51, tiny ? most : 0.0)), "%g became %d times %g",
                      x[i], q[i], scale);
}

// ---- products -----------------------------------------------------------------------------------------------------

struct Products {
    const KernelSet& set;
    const Matrix& matrix;
    const Activations& x;
    Report& report;
};

void compare(const Products& p, Results& got, long row, Results& want, const char* way) {
    const long outputs = p.matrix.layout.rows;
    for (long r = 0; r < got.rows; ++r)
        for (long n = 0; n < got.stride; ++n)
            if (n >= outputs)
                p.report.expect(got.untouched(r, n), "%s rows %ld+%ld: row %ld wrote column %ld, past the end", way,
                                row, got.rows, r, n);
            else
                p.report.expect(same(*got.at(r, n), *want.at(row + r, n)),
                                "%s rows %ld+%ld: row %ld column %ld is %.9g, not %.9g", way, row, got.rows, r, n,
                                *got.at(r, n), *want.at(row + r, n));
}

void check_values(const Products& p, Results& got) {
    for (long r = 0; r < got.rows; ++r)
        for (long n = 0; n < p.matrix.layout.rows; ++n) {
            const Value want = p.matrix.times(p.x, r, n);
            p.report.expect(near(*got.at(r, n), want.value, want.error),
                            "row %ld column %ld is %.9g, not %.9g (+- %.1g)", r, n, *got.at(r, n), want.value,
                            want.error);
        }
}

// Zero points and minima of all rows.
struct Corrected {
    std::vector<std::int32_t> start;
    std::vector<float> weight;

    explicit Corrected(const Products& p) {
        const Layout& layout = p.matrix.layout;
        start.resize(static_cast<std::size_t>(p.x.rows * layout.cols / layout.format.group));
        weight.resize(start.size());
        p.set.matmul.correct(layout, p.x, 0, p.x.rows, start.data(), weight.data());
    }
    Corrections get() const { return {start.data(), weight.data()}; }
};

// Records of all rows.
struct Arranged {
    std::vector<Record> records;
    long stride;

    explicit Arranged(const Products& p) : stride(p.x.rows) {
        records.resize(static_cast<std::size_t>(p.x.rows * p.x.cols / kBlock));
        p.set.matmul.arrange(p.matrix.layout, p.x, 0, p.x.rows, {records.data(), stride});
    }
    Records from(long row) { return {records.data() + row, stride}; }
};

Results direct(const Products& p, long row, long rows) {
    Results out(rows, p.matrix.layout.rows + 3);
    Arranged arranged(p);
    p.set.matmul.direct(p.matrix.layout, p.matrix.bytes.data(), arranged.from(row), rows, 0, p.matrix.layout.panels,
                        out.at(0, 0), out.stride);
    return out;
}

// One panel of many writes its own columns alone.
void check_panels(const Products& p, Results& want) {
    const Layout& layout = p.matrix.layout;
    Arranged arranged(p);
    for (long panel = 0; panel < layout.panels; ++panel) {
        Results out(2, layout.rows + 3);
        p.set.matmul.direct(layout, p.matrix.bytes.data(), arranged.from(0), 2, panel, panel + 1, out.at(0, panel * 16),
                            out.stride);
        for (long r = 0; r < 2; ++r)
            for (long n = 0; n < out.stride; ++n) {
                const bool mine = n / 16 == panel && n < layout.rows;
                p.report.expect(mine ? same(*out.at(r, n), *want.at(r, n)) : out.untouched(r, n),
                                "direct, panel %ld alone: row %ld column %ld is %.9g", panel, r, n, *out.at(r, n));
            }
    }
}

Results tiled(const Products& p, long row, long rows) {
    const Layout& layout = p.matrix.layout;
    const long width = p.set.matmul.tile_panels, groups = layout.cols / layout.format.group;
    const auto lanes = static_cast<std::size_t>(groups * width * 16);
    const Corrected corrected(p);
    Results out(rows, layout.rows + 3);
    for (long panel = 0; panel < layout.panels; panel += width) {
        std::vector<std::uint8_t> q(static_cast<std::size_t>(layout.cols * 16 * width));
        std::vector<float> scale(lanes), minimum(lanes);
        const Tile tile{q.data(), scale.data(), minimum.data(), width};
        p.set.matmul.unpack(layout, p.matrix.bytes.data(), panel, tile);
        p.set.matmul.tiled(layout, tile, p.x, corrected.get(), row, row + rows, out.at(0, panel * 16), out.stride,
                           std::min(width * 16, layout.rows - panel * 16));
    }
    return out;
}

void check_products(const Products& p, bool quick) {
    Results all = direct(p, 0, kRows);
    check_values(p, all);
    check_panels(p, all);
    for (long rows = 1; rows <= kRows; rows += quick && rows > 12 ? 9 : 1) {
        const long row = rows % 4 == 3 && rows + 5 <= kRows ? 5 : 0;
        Results few = direct(p, row, rows), many = tiled(p, row, rows);
        compare(p, few, row, all, "direct");
        compare(p, many, row, all, "tiled");
    }
}

}  // namespace

void check_quantize(const KernelSet& set, Report& report) {
    Random random(1);
    report.in(std::string(set.name) + " quantize");
    for (const long cols : {32l, 96l, 256l}) {
        const std::vector<float> x = activations(random, kRows, cols);
        const Quantised to(set, x, cols), both = Quantised::fine(set, x, cols);
        const long blocks = kRows * cols / 32;
        for (long block = 0; block < blocks; ++block) {
            check_block(x.data() + block * 32, to, block, report);
            check_block(x.data() + block * 32, both, block, report);
            check_rest(x.data() + block * 32, both, block, blocks + block, report);
        }
        if (!set.matmul.round_words) continue;
        const InWords words(set, x, cols);
        for (long block = 0; block < blocks; ++block) check_word_block(x.data() + block * 32, words, block, report);
    }
}

void check_matmul(const KernelSet& set, Report& report, bool quick) {
    const long shapes[][2] = {{35, 3}, {1, 1}, {16, 2}, {67, 5}};  // rows, blocks of the stored type
    for (const Format& format : kFormats)
        for (int i = 0; i < (quick ? 2 : 4); ++i) {
            Random random(static_cast<std::uint64_t>(100 + i));
            const long rows = shapes[i][0], cols = shapes[i][1] * (format.super ? 256 : 32);
            const Matrix matrix(random, format, rows, cols, i % 2);
            const Quantised x(set, activations(random, kRows, cols), cols);
            report.in(std::string(set.name) + " " + format.type + " [" + std::to_string(rows) + ", " +
                      std::to_string(cols) + "]");
            check_products({set, matrix, x.view, report}, quick);
        }
}

}  // namespace pocketgem::check
