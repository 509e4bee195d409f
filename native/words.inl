// Activations of 16 bits times weights of 8, for processors that multiply pairs of words in one instruction and bytes
// only by way of them (AVX2 without VNNI): half the work of two products of bytes, the same for any number of rows.
// Weights are widened as they come from their panel. Smaller weights are not for it: sums of theirs that begin in 16
// bits are as fast.
namespace pocketgem {
namespace {

// ---- activations ----------------------------------------------------------------------------------------------------

// A block of 32 columns with the scale largest / 32,767.
inline void round_block(const float* x, std::int16_t* q, float& scale) {
    const F a = load(x), b = load(x + 16);
    const std::int32_t top = largest(larger(bits_of(magnitude(a)), bits_of(magnitude(b))));
    float most;
    __builtin_memcpy(&most, &top, 4);
    const bool finite = top < 0x7f800000;
    const bool flat = top < 0x07800000;  // below 2^-112, zero among them: 32,767 over it would overflow
    const F inverse = set(finite && !flat ? 32767.0f / most : 0.0f);
    for (int i = 0; i < 2; ++i) {
        const I words = to_int(finite ? (i ? b : a) * inverse : zeros());
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(words.a, words.b), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 16 * i), packed);
    }
    scale = finite ? most / 32767.0f : __builtin_nanf("");
}

void round_words(const float* x, const Words& to, long row) {
    const long blocks = to.cols / kBlock;
    for (long b = 0; b < blocks; ++b)
        round_block(x + b * kBlock, to.q + row * to.cols + b * kBlock, to.scale[row * blocks + b]);
}

// ---- products -------------------------------------------------------------------------------------------------------

inline __m256i widened(const std::uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline __m256i repeat4(const std::int16_t* p) {
    long long four;
    __builtin_memcpy(&four, p, 8);
    return _mm256_set1_epi64x(four);
}

// Eight outputs of a group: two sums of pairs of columns for each become one, in the order of the outputs.
inline __m256 whole_dots(const __m256i (&pairs)[2]) {
    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(_mm256_hadd_epi32(pairs[0], pairs[1]), 0xd8));
}

// R rows times H halves of a panel, from `half` on; a half is eight outputs. `ahead`: the weights come
// from memory, and are asked for before they are needed.
template <bool super, int R, int H>
inline void times_words(const Panel& panel, long half, const Words& x, long row, bool ahead, __m256 (&sum)[R][H]) {
    const long blocks = x.cols / kBlock;
    const std::int16_t* a = x.q + row * x.cols;
    const std::uint8_t* q = panel.base + half * 32;
    F unit = zeros();
    for (auto& of_row : sum)
        for (__m256& one : of_row) one = _mm256_setzero_ps();
    for (long block = 0; block < blocks; ++block) {
        if (super && block % (kSuper / kBlock) == 0) unit = unit_at(panel.unit, block);
        if (ahead) fetch_ahead<8>(panel, block);
        __m256i pairs[R][H][2];
        for (auto& of_row : pairs)
            for (auto& of_half : of_row) of_half[0] = of_half[1] = _mm256_setzero_si256();
        for (int j = 0; j < 8; ++j, q += 64, a += 4) {
            __m256i four[R];
            for (int r = 0; r < R; ++r) four[r] = repeat4(a + r * x.cols);
            for (int i = 0; i < 2 * H; ++i) {
                const __m256i w = widened(q + i * 16);
                for (int r = 0; r < R; ++r) {
                    __m256i& to = pairs[r][i / 2][i % 2];
                    to = _mm256_add_epi32(to, _mm256_madd_epi16(w, four[r]));
                }
            }
        }
        const F both = scale_of<super>(panel, block, unit);
        const __m256 scale[2] = {both.a, both.b};
        for (int r = 0; r < R; ++r) {
            const __m256 factor = _mm256_set1_ps(x.scale[(row + r) * blocks + block]);
            for (int h = 0; h < H; ++h)
                sum[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(whole_dots(pairs[r][h]), scale[H == 2 ? h : half]), factor,
                                            sum[r][h]);
        }
    }
}

template <bool super, int R, int H>
inline void store_words(const Panel& panel, const Words& x, long row, float* out, long stride, long columns) {
    for (long half = 0; half < 2 && half * 8 < columns; half += H) {
        __m256 sum[R][H];
        times_words<super, R, H>(panel, half, x, row, row == 0 && half == 0, sum);
        for (int r = 0; r < R; ++r)
            for (long h = half; h < half + H && h * 8 < columns; ++h)
                _mm256_maskstore_ps(out + r * stride + h * 8, first(static_cast<int>(std::min(8l, columns - h * 8))),
                                    sum[r][h - half]);
    }
}

// Four rows a half of the panel after the other, one or two with all of it: what the registers hold.
template <bool super>
void panels_in_words(const Layout& layout, const std::uint8_t* bytes, const Words& x, long panel, long panel_end,
                     float* out, long stride) {
    for (long p = panel; p < panel_end; ++p, out += kPanel) {
        const Panel one = panel_of(layout, bytes, p);
        const long columns = layout.rows - p * kPanel;
        long r = 0;
        for (; x.rows - r >= 4; r += 4) store_words<super, 4, 1>(one, x, r, out + r * stride, stride, columns);
        for (; x.rows - r >= 2; r += 2) store_words<super, 2, 2>(one, x, r, out + r * stride, stride, columns);
        for (; r < x.rows; ++r) store_words<super, 1, 2>(one, x, r, out + r * stride, stride, columns);
    }
}

void words(const Layout& layout, const std::uint8_t* bytes, const Words& x, long panel, long panel_end, float* out,
           long stride) {
    layout.format.super ? panels_in_words<true>(layout, bytes, x, panel, panel_end, out, stride)
                        : panels_in_words<false>(layout, bytes, x, panel, panel_end, out, stride);
}

constexpr MatmulKernels with_words(MatmulKernels kernels) {
    kernels.round_words = round_words, kernels.words = words;
    return kernels;
}

constexpr bool all_wide_formats_are_alike() {  // signed, with a scale for each block of 32 columns, and nothing else
    for (const Format& format : kFormats)
        if (format.bits == 8 && (format.group != kBlock || format.minimum || format.zero)) return false;
    return true;
}
static_assert(all_wide_formats_are_alike());

constexpr MatmulKernels kProducts = with_words(kMatmul);
constexpr Trial kTrial = nullptr;

}  // namespace
}  // namespace pocketgem
