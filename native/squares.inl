// Many rows on Arm's I8MM: SMMLA multiplies two rows of eight bytes with two others, and adds the 2 x 2 sums to a
// register. Half a panel times two pairs of rows fit the registers. The sums keep the order in which SMMLA has them,
//     row a output 2 o | row a output 2 o + 1 | row b output 2 o | row b output 2 o + 1
// to the end: scales and factors are brought to it instead. Groups are added in the order and with the roundings of
// matmul.inl, so that a row's result has the bits of `direct`.
//
// An unpacked panel (Tile::q) has 128 bytes for each eight columns: output 2 o's, then output 2 o + 1's, eight times.
// Its numbers are signed bytes, the zero point subtracted.
namespace pocketgem {
namespace {

constexpr int kHalf = kPanel / 2;  // outputs multiplied at once
constexpr int kOutputPairs = kHalf / 2;
constexpr int kRowPairs = 2;  // rows multiplied at once, in pairs

inline float32x4_t twice(const float* two) {
    double both;
    __builtin_memcpy(&both, two, 8);
    return vreinterpretq_f32_f64(vdupq_n_f64(both));
}
inline float32x4_t each_twice(float a, float b) { return vcombine_f32(vdup_n_f32(a), vdup_n_f32(b)); }
inline int8x16_t first_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
inline int8x16_t second_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

// The rows of P pairs; where an odd number of rows ends, the last one stands for two.
template <int P>
struct Pairs {
    long a[P], b[P];

    Pairs(long row, long row_end) {
        for (int p = 0; p < P; ++p) a[p] = row + 2 * p, b[p] = a[p] + 1 < row_end ? a[p] + 1 : a[p];
    }
};

// One group of columns: q is its first byte in the half panel.
template <int group, int P>
inline void multiply_group(const std::uint8_t* q, const Activations& x, const Pairs<P>& rows, long column,
                           int32x4_t (&sums)[P][kOutputPairs]) {
    for (int p = 0; p < P; ++p)
        for (int o = 0; o < kOutputPairs; ++o) sums[p][o] = vdupq_n_s32(0);
    for (int k = 0; k < group; k += 16) {
        int8x16_t eight[P][2];
        for (int p = 0; p < P; ++p) {
            const int8x16_t a = vld1q_s8(x.q + rows.a[p] * x.cols + column + k);
            const int8x16_t b = vld1q_s8(x.q + rows.b[p] * x.cols + column + k);
            eight[p][0] = first_halves(a, b), eight[p][1] = second_halves(a, b);
        }
        for (int half = 0; half < 2; ++half)
            for (int o = 0; o < kOutputPairs; ++o) {
                const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(q + (k + 8 * half) * kPanel + o * 16));
                for (int p = 0; p < P; ++p) sums[p][o] = vmmlaq_s32(sums[p][o], eight[p][half], w);
            }
    }
}

// Outputs [first, first + 8) of a panel for P pairs of rows.
template <int group, bool minimum, int P>
inline void half_panel(const Tile& tile, const Activations& x, const Corrections& corrections, const Pairs<P>& rows,
                       int first, float32x4_t (&sum)[P][kOutputPairs]) {
    const long blocks = x.cols / kBlock, groups = x.cols / group;
    for (int p = 0; p < P; ++p)
        for (int o = 0; o < kOutputPairs; ++o) sum[p][o] = vdupq_n_f32(0.0f);
    for (long g = 0; g < groups; ++g) {
        int32x4_t d[P][kOutputPairs];
        multiply_group<group, P>(tile.q + g * group * kPanel + first * 8, x, rows, g * group, d);
        float32x4_t scale[kOutputPairs], least[kOutputPairs];
        for (int o = 0; o < kOutputPairs; ++o) {
            scale[o] = twice(tile.scale + g * kPanel + first + 2 * o);
            if constexpr (minimum) least[o] = twice(tile.minimum + g * kPanel + first + 2 * o);
        }
        for (int p = 0; p < P; ++p) {
            const float* factors = x.scale + g * group / kBlock;
            const float32x4_t factor = each_twice(factors[rows.a[p] * blocks], factors[rows.b[p] * blocks]);
            for (int o = 0; o < kOutputPairs; ++o)
                sum[p][o] = vfmaq_f32(sum[p][o], vmulq_f32(vcvtq_f32_s32(d[p][o]), scale[o]), factor);
            if constexpr (minimum) {
                const float* weights = corrections.weight + g;
                const float32x4_t weight = each_twice(weights[rows.a[p] * groups], weights[rows.b[p] * groups]);
                for (int o = 0; o < kOutputPairs; ++o) sum[p][o] = vfmaq_f32(sum[p][o], least[o], weight);
            }
        }
    }
}

// Eight outputs of one row, or as many of them as there are.
inline void store_half(float* to, float32x4_t low, float32x4_t high, long left) {
    if (left >= kHalf) return vst1q_f32(to, low), vst1q_f32(to + 4, high);
    float some[kHalf];
    vst1q_f32(some, low), vst1q_f32(some + 4, high);
    for (long i = 0; i < left; ++i) to[i] = some[i];
}

template <int P>
inline void store_pairs(const float32x4_t (&sum)[P][kOutputPairs], const Pairs<P>& rows, float* out, long stride,
                        long left) {
    for (int p = 0; p < P; ++p) {
        float64x2_t s[kOutputPairs];
        for (int o = 0; o < kOutputPairs; ++o) s[o] = vreinterpretq_f64_f32(sum[p][o]);
        const auto firsts = [&](int o) { return vreinterpretq_f32_f64(vzip1q_f64(s[o], s[o + 1])); };
        const auto seconds = [&](int o) { return vreinterpretq_f32_f64(vzip2q_f64(s[o], s[o + 1])); };
        store_half(out + (rows.a[p] - rows.a[0]) * stride, firsts(0), firsts(2), left);
        if (rows.b[p] != rows.a[p]) store_half(out + (rows.b[p] - rows.a[0]) * stride, seconds(0), seconds(2), left);
    }
}

template <int group, bool minimum>
void multiply_pairs(const Tile& tile, const Activations& x, const Corrections& corrections, long row, long row_end,
                    float* out, long stride, long columns) {
    long r = row;
    const auto rows = [&](auto count, long enough) {
        constexpr int P = decltype(count)::value;
        for (; row_end - r >= enough; r += 2 * P) {
            const Pairs<P> pairs(r, row_end);
            for (int first = 0; first < kPanel && first < columns; first += kHalf) {
                float32x4_t sum[P][kOutputPairs];
                half_panel<group, minimum, P>(tile, x, corrections, pairs, first, sum);
                store_pairs<P>(sum, pairs, out + (r - row) * stride + first, stride, columns - first);
            }
        }
    };
    rows(Count<kRowPairs>{}, 2 * kRowPairs - 1);
    rows(Count<1>{}, 1);
}

void tiled_in_squares(const Layout& layout, const Tile& tile, const Activations& x, const Corrections& corrections,
                      long row, long row_end, float* out, long stride, long columns) {
    specialise(layout.format, [&](auto, auto group, auto, auto minimum) {
        multiply_pairs<decltype(group)::value, decltype(minimum)::value>(tile, x, corrections, row, row_end, out,
                                                                         stride, columns);
    });
}

void unpack_in_squares(const Layout& layout, const std::uint8_t* bytes, long panel, const Tile& tile) {
    unpack(layout, bytes, panel, tile);
    const uint8x16_t zero = vdupq_n_u8(static_cast<std::uint8_t>(operand_zero(layout.format)));
    for (std::uint8_t* at = tile.q; at < tile.q + layout.cols * kPanel; at += 128) {
        const B low = load_bytes(at), high = load_bytes(at + 64);  // columns 0 .. 3 and 4 .. 7 of sixteen outputs
        for (int i = 0; i < 4; ++i) {
            const uint32x4_t a = vreinterpretq_u32_u8(vsubq_u8(low.v[i], zero));
            const uint32x4_t b = vreinterpretq_u32_u8(vsubq_u8(high.v[i], zero));
            vst1q_u8(at + 32 * i, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
            vst1q_u8(at + 32 * i + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
        }
    }
}

constexpr MatmulKernels in_squares(MatmulKernels kernels) {
    kernels.few_rows = kDirectRows;  // by counting instructions: the unpacking pays from the fifth row on
    kernels.unpack = unpack_in_squares, kernels.tiled = tiled_in_squares;
    return kernels;
}

static_assert(kTilePanels == 1);
constexpr MatmulKernels kProducts = in_squares(kMatmul);
constexpr Trial kTrial = nullptr;

}  // namespace
}  // namespace pocketgem
