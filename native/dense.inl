// Plain weights times float activations: lanes run along the columns, a small tile of outputs and rows shares its
// loads.
namespace pocketgem {
namespace {

template <int type>
inline F weights_at(const void* weights, long index) {
    if constexpr (type == 0) return load(static_cast<const float*>(weights) + index);
    if constexpr (type == 1) return load_bf16(static_cast<const std::uint16_t*>(weights) + index);
    return load_f16(static_cast<const std::uint16_t*>(weights) + index);
}

template <int type>
inline float weight_at(const void* weights, long index) {
    alignas(64) std::uint16_t halves[kPanel] = {};
    if constexpr (type == 0) return static_cast<const float*>(weights)[index];
    halves[0] = static_cast<const std::uint16_t*>(weights)[index];
    float wide[kPanel];
    store(wide, weights_at<type>(halves, 0));
    return wide[0];
}

// N outputs of R rows.
template <int type, int N, int R>
inline void dense_tile(const void* weights, const float* x, long cols, long n, float* out, long stride) {
    F sums[N][R];
    for (int i = 0; i < N; ++i)
        for (int r = 0; r < R; ++r) sums[i][r] = zeros();
    const long whole = cols / kPanel * kPanel;
    for (long k = 0; k < whole; k += kPanel) {
        F a[R];
        for (int r = 0; r < R; ++r) a[r] = load(x + r * cols + k);
        for (int i = 0; i < N; ++i) {
            const F w = weights_at<type>(weights, (n + i) * cols + k);
            for (int r = 0; r < R; ++r) sums[i][r] = fma(w, a[r], sums[i][r]);
        }
    }
    for (int i = 0; i < N; ++i)
        for (int r = 0; r < R; ++r) {
            float total = sum(sums[i][r]);
            for (long k = whole; k < cols; ++k) total += weight_at<type>(weights, (n + i) * cols + k) * x[r * cols + k];
            out[r * stride + n + i] = total;
        }
}

template <int type, int R>
inline void dense_rows(const void* weights, const float* x, long cols, long begin, long end, float* out, long stride) {
    long n = begin;
    for (; n + 4 <= end; n += 4) dense_tile<type, 4, R>(weights, x, cols, n, out, stride);
    for (; n < end; ++n) dense_tile<type, 1, R>(weights, x, cols, n, out, stride);
}

template <int type>
void dense_as(const void* weights, const float* x, long cols, long begin, long end, long row, long row_end, float* out,
              long stride) {
    long r = row;
    for (; r + 4 <= row_end; r += 4)
        dense_rows<type, 4>(weights, x + r * cols, cols, begin, end, out + (r - row) * stride, stride);
    for (; r < row_end; ++r)
        dense_rows<type, 1>(weights, x + r * cols, cols, begin, end, out + (r - row) * stride, stride);
}

void dense(int type, const void* weights, const float* x, long cols, long begin, long end, long row, long row_end,
           float* out, long stride) {
    if (type == 0) return dense_as<0>(weights, x, cols, begin, end, row, row_end, out, stride);
    if (type == 1) return dense_as<1>(weights, x, cols, begin, end, row, row_end, out, stride);
    dense_as<2>(weights, x, cols, begin, end, row, row_end, out, stride);
}

// `direct` unpacks again for each kDirectRows rows: a few times that costs less than a tile.
constexpr MatmulKernels kMatmul = {quantize, quantize_fine, arrange, direct,  4 * kDirectRows, unpack, correct,
                                   tiled,    kTilePanels,   24,      nullptr, nullptr,         dense};

}  // namespace
}  // namespace pocketgem
