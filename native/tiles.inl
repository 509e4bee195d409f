// Many rows on a matrix unit: up to 32 rows times two panels at once, in four tiles of sums. One product of tiles is
// one group of columns, so the sums leave the unit after each and are scaled by the vectors, in the order and with the
// roundings of matmul.inl: a row's result has the bits of `direct`.
//
// A group of an unpacked panel (Tile::q) already lies as the unit wants its second operand: row j of 64 bytes holds
// four columns of sixteen outputs. The zero point is subtracted when a tile is unpacked, so that its numbers are signed
// bytes and no start value is needed.
namespace pocketgem {
namespace {

constexpr int kAcross = 2;    // panels
constexpr int kHeight = 16;   // rows of a tile of activations
constexpr int kDown = 2;      // tiles of activations
constexpr int kTogether = 4;  // groups whose sums are scaled in one go: float sums are fetched once for them
constexpr int kRowsTile = 4;  // registers: 0..3 sums, 4 and 5 activations, 6 and 7 weights
constexpr int kWeightsTile = 6;

using TileSums = std::int32_t[kHeight][kPanel];
using GroupSums = TileSums[kDown][kAcross];

// Registers for `rows` rows, and groups of `group` columns.
inline tiles::Shapes shapes_of(long rows, int group) {
    tiles::Shapes shapes;
    for (int d = 0; d < kDown; ++d) {
        const long height = rows - d * kHeight < kHeight ? rows - d * kHeight : kHeight;
        if (height <= 0) break;
        shapes.set(kRowsTile + d, height, group);
        for (int p = 0; p < kAcross; ++p) shapes.set(d * kAcross + p, height, kPanel * 4);
    }
    for (int p = 0; p < kAcross; ++p) shapes.set(kWeightsTile + p, group / 4, kPanel * 4);
    return shapes;
}

inline void load_weights(const std::uint8_t* q) {
    tiles::load<kWeightsTile>(q, kAcross * 64);
    tiles::load<kWeightsTile + 1>(q + 64, kAcross * 64);
}

// Tile `d` of the activations times both panels.
template <int d>
inline void multiply_tiles(const std::int8_t* a, long stride, TileSums (&to)[kAcross]) {
    constexpr int first = d * kAcross, rows = kRowsTile + d;
    tiles::load<rows>(a, stride);
    tiles::clear<first>();
    tiles::clear<first + 1>();
    tiles::multiply<first, rows, kWeightsTile>();
    tiles::multiply<first + 1, rows, kWeightsTile + 1>();
    tiles::store<first>(to[0], kPanel * 4);
    tiles::store<first + 1>(to[1], kPanel * 4);
}

// The float sums of up to 32 rows and two panels, while the groups are added.
struct Square {
    const Tile& tile;
    const Activations& x;
    const Corrections& corrections;
    long row, rows;
    alignas(64) float sum[kDown * kHeight][kAcross][kPanel] = {};
    alignas(64) GroupSums products[kTogether];  // of the groups at hand

    Square(const Tile& tile, const Activations& x, const Corrections& corrections, long row, long rows)
        : tile(tile), x(x), corrections(corrections), row(row), rows(rows) {}
};

// Groups g .. g + together - 1. What the loop needs lies in locals: its instructions may write any memory, for all that
// the compiler knows.
template <int group, int together>
inline void multiply_groups(Square& s, long g) {
    const long cols = s.x.cols;
    const bool second = s.rows > kHeight;
    const std::int8_t* a = s.x.q + s.row * cols + g * group;
    const std::uint8_t* q = s.tile.q + g * group * kPanel * kAcross;
    GroupSums* to = s.products;
    for (int t = 0; t < together; ++t, ++to, a += group, q += group * kPanel * kAcross) {
        load_weights(q);
        multiply_tiles<0>(a, cols, (*to)[0]);
        if (second) multiply_tiles<1>(a + kHeight * cols, cols, (*to)[1]);
    }
}

template <int group, bool minimum, int together>
inline void scale_groups(Square& s, long g) {
    const long groups = s.x.cols / group, blocks = s.x.cols / kBlock;
    for (int p = 0; p < kAcross; ++p) {
        const long lanes = (g * kAcross + p) * kPanel;
        for (long r = 0; r < s.rows; ++r) {
            const float* factor = s.x.scale + (s.row + r) * blocks;
            F sum = load(s.sum[r][p]);
            for (int t = 0; t < together; ++t) {
                const F product = to_float(load_i(s.products[t][r / kHeight][p][r % kHeight]));
                const F scale = load(s.tile.scale + lanes + t * kAcross * kPanel);
                sum = fma(product * scale, set(factor[(g + t) * group / kBlock]), sum);
                if constexpr (minimum) {
                    const F least = load(s.tile.minimum + lanes + t * kAcross * kPanel);
                    sum = fma(least, set(s.corrections.weight[(s.row + r) * groups + g + t]), sum);
                }
            }
            store(s.sum[r][p], sum);
        }
    }
}

template <int group, bool minimum>
inline void add_all_groups(Square& s) {
    const long groups = s.x.cols / group;
    long g = 0;
    const auto add = [&](auto count) {
        constexpr int together = decltype(count)::value;
        for (; groups - g >= together; g += together) {
            multiply_groups<group, together>(s, g);
            scale_groups<group, minimum, together>(s, g);
        }
    };
    tiles::configure(shapes_of(s.rows, group));
    add(Count<kTogether>{});
    add(Count<1>{});
    tiles::release();  // else the system saves eight kilobytes whenever it takes the processor
}

inline void store_square(const Square& s, float* out, long stride, long columns) {
    for (long r = 0; r < s.rows; ++r)
        for (int p = 0; p < kAcross; ++p) {
            const long left = columns - p * kPanel;
            float* to = out + r * stride + p * kPanel;
            if (left >= kPanel) store(to, load(s.sum[r][p]));
            else if (left > 0) store_some(to, load(s.sum[r][p]), static_cast<int>(left));
        }
}

void multiply_on_unit(const Layout& layout, const Tile& tile, const Activations& x, const Corrections& corrections,
                      long row, long row_end, float* out, long stride, long columns) {
    for (long r = row; r < row_end; r += kDown * kHeight) {
        const long left = row_end - r, rows = left < kDown * kHeight ? left : kDown * kHeight;
        Square square(tile, x, corrections, r, rows);
        specialise(layout.format, [&](auto, auto group, auto, auto minimum) {
            add_all_groups<decltype(group)::value, decltype(minimum)::value>(square);
        });
        store_square(square, out + (r - row) * stride, stride, columns);
    }
}

void unpack_signed(const Layout& layout, const std::uint8_t* bytes, long panel, const Tile& tile) {
    unpack(layout, bytes, panel, tile);
    const int zero = operand_zero(layout.format);
    for (long i = 0; zero && i < layout.cols * kPanel * tile.panels; ++i)
        tile.q[i] = static_cast<std::uint8_t>(tile.q[i] - zero);
}

// One product of tiles with known numbers, for trial.h.
bool unit_multiplies() {
    constexpr int group = kBlock;
    std::int8_t a[kHeight][group], w[group / 4][kAcross][kPanel][4];
    int seed = 1;
    const auto next = [&] { return static_cast<std::int8_t>((seed = seed * 75 % 65537) & 0xff); };
    for (auto& row : a)
        for (auto& number : row) number = next();
    for (auto& four : w)
        for (auto& panel : four)
            for (auto& output : panel)
                for (auto& number : output) number = next();
    alignas(64) TileSums sums[kAcross];
    tiles::configure(shapes_of(kHeight, group));
    load_weights(reinterpret_cast<const std::uint8_t*>(w));
    multiply_tiles<0>(a[0], group, sums);
    tiles::release();
    bool right = true;
    for (int p = 0; p < kAcross; ++p)
        for (int m = 0; m < kHeight; ++m)
            for (int n = 0; n < kPanel; ++n) {
                std::int32_t sum = 0;
                for (int k = 0; k < group; ++k) sum += a[m][k] * w[k / 4][p][n][k % 4];
                right = right && sums[p][m][n] == sum;
            }
    return right;
}

constexpr MatmulKernels with_unit(MatmulKernels kernels) {
    kernels.few_rows = kHeight;  // by counting instructions, not by a clock: nobody has run this on a processor
    kernels.unpack = unpack_signed, kernels.tiled = multiply_on_unit;
    kernels.tile_panels = kAcross, kernels.tiled_rows = kDown * kHeight;
    return kernels;
}

constexpr MatmulKernels kProducts = with_unit(kMatmul);
constexpr Trial kTrial = unit_multiplies;

}  // namespace
}  // namespace pocketgem
