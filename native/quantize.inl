// Activations to int8: 32 columns share the scale largest / 127.
namespace pocketgem {
namespace {

inline void put_block(simd::I low, simd::I high, std::int8_t* q, std::int32_t* sums16, std::int32_t& sum32) {
    store_as_i8(q, low);
    store_as_i8(q + 16, high);
    sums16[0] = sum(low), sums16[1] = sum(high);
    sum32 = sums16[0] + sums16[1];
}

inline void quantize_block(const float* x, std::int8_t* q, float& scale, std::int32_t* sums16, std::int32_t& sum32) {
    using namespace simd;
    const F a = load(x), b = load(x + 16);
    // Magnitudes as integers order as the floats do, with infinity and then NaN above them all.
    const std::int32_t top = largest(larger(bits_of(magnitude(a)), bits_of(magnitude(b))));
    float most;
    __builtin_memcpy(&most, &top, 4);
    const bool finite = top < 0x7f800000;
    const bool flat = top < 0x03000000;  // below 2^-121, zero among them: 127 over it would overflow
    const F inverse = set(finite && !flat ? 127.0f / most : 0.0f);
    const I low = to_int(finite ? a * inverse : zeros()), high = to_int(finite ? b * inverse : zeros());
    put_block(low, high, q, sums16, sum32);
    scale = finite ? most / 127.0f : __builtin_nanf("");
}

// What rounding left of a block, to int8 again: 1/254 of the first scale is a step now.
inline void quantize_rest(const float* x, const std::int8_t* q, float scale, std::int8_t* rest, float& rest_scale,
                          std::int32_t* sums16, std::int32_t& sum32) {
    using namespace simd;
    const bool flat = !(scale >= 1e-37f);  // also a NaN: its row is lost already
    const F down = set(-scale), up = set(flat ? 0.0f : 254.0f / scale);
    const F bound = set(127.0f), zero = zeros();
    const auto part = [&](long at) {
        const F left = fma(load_i8(q + at), down, load(x + at)) * up;
        return flat ? to_int(zero) : to_int(smaller(larger(left, zero - bound), bound));
    };
    const I low = part(0), high = part(16);
    put_block(low, high, rest, sums16, sum32);
    rest_scale = flat ? 0.0f : scale / 254.0f;
}

void quantize(const float* x, long columns, const Activations& to, long row, long column) {
    const long first = (row * to.cols + column) / kBlock;
    for (long b = 0; b < columns / kBlock; ++b) {
        const long into = first + b;
        quantize_block(x + b * kBlock, to.q + into * kBlock, to.scale[into], to.sums16 + into * 2, to.sums32[into]);
    }
}

void quantize_fine(const float* x, const Activations& to, long row, long rest) {
    const long blocks = to.cols / kBlock;
    quantize(x, to.cols, to, row, 0);
    for (long b = 0; b < blocks; ++b) {
        const long from = row * blocks + b, into = rest * blocks + b;
        quantize_rest(x + b * kBlock, to.q + from * kBlock, to.scale[from], to.q + into * kBlock, to.scale[into],
                      to.sums16 + into * 2, to.sums32[into]);
    }
}

}  // namespace
}  // namespace pocketgem
