// Low-rank products. Each sum is of one row and in one order, however many rows share the loads of weights.
namespace pocketgem {
namespace {

using namespace simd;

// N of the four ranks of a group, from the one at `a` on, times R rows.
template <int N, int R>
inline void down_tile(const std::uint16_t* a, const float* x, long cols, float scale, float* low, long stride) {
    F sums[N][R];
    for (int i = 0; i < N; ++i)
        for (int r = 0; r < R; ++r) sums[i][r] = zeros();
    const auto add = [&](long k, const auto& load_x) {
        F rows[R];
        for (int r = 0; r < R; ++r) rows[r] = load_x(x + r * cols + k);
        for (int i = 0; i < N; ++i) {
            const F w = load_f16(a + (k * kRanks + i * kPanel));
            for (int r = 0; r < R; ++r) sums[i][r] = fma(w, rows[r], sums[i][r]);
        }
    };
    long k = 0;
    for (; k + kPanel <= cols; k += kPanel) add(k, [](const float* p) { return load(p); });
    if (k < cols) add(k, [&](const float* p) { return load_some(p, static_cast<int>(cols - k)); });
    for (int i = 0; i < N; ++i)
        for (int r = 0; r < R; ++r) low[r * stride + i] = sum(sums[i][r]) * scale;
}

void down(const LowRank& change, const float* x, long cols, long rows, float* low, long stride) {
    const long group = (cols + kPanel - 1) / kPanel * kPanel * kRanks;
    for (long j = 0; j < change.rank; j += kRanks) {
        const std::uint16_t* a = change.a + j / kRanks * group;
        long r = 0;
        for (; r + 3 <= rows; r += 3)  // six sums leave registers for their operands in every set
            for (int half = 0; half < kRanks; half += 2)
                down_tile<2, 3>(a + half * kPanel, x + r * cols, cols, change.scale, low + r * stride + j + half,
                                stride);
        for (; r < rows; ++r) down_tile<4, 1>(a, x + r * cols, cols, change.scale, low + r * stride + j, stride);
    }
}

// One panel of outputs, of which `left` are stored, for R rows.
template <int R>
inline void up_tile(const std::uint16_t* b, long rank, const float* low, long low_stride, long left, float* out,
                    long stride) {
    const int some = static_cast<int>(left);
    F sums[R];
    for (int r = 0; r < R; ++r) sums[r] = left >= kPanel ? load(out + r * stride) : load_some(out + r * stride, some);
    for (long j = 0; j < rank; ++j) {
        const F w = load_f16(b + j * kPanel);
        for (int r = 0; r < R; ++r) sums[r] = fma(w, set(low[r * low_stride + j]), sums[r]);
    }
    for (int r = 0; r < R; ++r)
        left >= kPanel ? store(out + r * stride, sums[r]) : store_some(out + r * stride, sums[r], some);
}

void up(const LowRank& change, const float* low, long low_stride, long panel, long panel_end, long outputs, long rows,
        float* out, long stride) {
    for (long p = panel; p < panel_end; ++p, out += kPanel) {
        const std::uint16_t* b = change.b + p * change.rank * kPanel;
        const long left = outputs - p * kPanel;
        long r = 0;
        for (; r + 4 <= rows; r += 4)
            up_tile<4>(b, change.rank, low + r * low_stride, low_stride, left, out + r * stride, stride);
        for (; r < rows; ++r)
            up_tile<1>(b, change.rank, low + r * low_stride, low_stride, left, out + r * stride, stride);
    }
}

constexpr LowRankKernels kLowRank = {down, up};

}  // namespace
}  // namespace pocketgem
