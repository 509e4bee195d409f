// int8 products. Every path adds the groups of a row in the same order with the same roundings, so a result does not
// depend on how many rows came with it:  sum = fma(float(dot) * weight_scale, x_scale, sum), then the minimum's share.
namespace pocketgem {
namespace {

using namespace simd;

// One panel of a packed matrix, as addresses of its planes.
struct Panel {
    const std::uint8_t *base, *high, *scale, *unit, *minimum, *minimum_unit;
};

inline Panel panel_of(const Layout& layout, const std::uint8_t* bytes, long p) {
    const auto at = [=](const Plane& plane) { return bytes + plane.start + p * plane.stride; };
    return {at(layout.base),       at(layout.high),    at(layout.scale),
            at(layout.scale_unit), at(layout.minimum), at(layout.minimum_unit)};
}

// While many rows are multiplied the processor looks too few blocks ahead to keep memory busy by itself. Past the end
// of a panel lies the next one; past the last, a hint for an address that is not there has no effect.
constexpr long kBlocksAhead = 16;

template <int bits>
inline void fetch_ahead(const Panel& panel, long block) {
    constexpr int base = bits == 8 ? 512 : 256, high = bits == 5 ? 64 : bits == 6 ? 128 : 0;
    for (int line = 0; line < base; line += 64) prefetch(panel.base + (block + kBlocksAhead) * base + line);
    for (int line = 0; line < high; line += 64) prefetch(panel.high + (block + kBlocksAhead) * high + line);
}

// ---- a block of 32 columns as eight registers, register j: columns 4 j .. 4 j + 3 ---------------------------------

template <int bits>
inline void unpack_block(const Panel& panel, long block, B (&q)[8]) {
    if constexpr (bits == 8) {
        for (int j = 0; j < 8; ++j) q[j] = byte_operand(load_bytes(panel.base + block * 512 + j * 64));
        return;
    }
    for (int i = 0; i < 4; ++i) {
        const B packed = load_bytes(panel.base + block * 256 + i * 64);
        q[2 * i] = low_nibbles(packed), q[2 * i + 1] = high_nibbles(packed);
    }
    if constexpr (bits == 5) {
        const B h = load_bytes(panel.high + block * 64);
        q[0] = with_high<0, 1>(q[0], h), q[1] = with_high<1, 1>(q[1], h);
        q[2] = with_high<2, 1>(q[2], h), q[3] = with_high<3, 1>(q[3], h);
        q[4] = with_high<4, 1>(q[4], h), q[5] = with_high<5, 1>(q[5], h);
        q[6] = with_high<6, 1>(q[6], h), q[7] = with_high<7, 1>(q[7], h);
    }
    if constexpr (bits == 6) {
        for (int i = 0; i < 2; ++i) {
            const B h = load_bytes(panel.high + block * 128 + i * 64);
            q[4 * i] = with_high<0, 2>(q[4 * i], h), q[4 * i + 1] = with_high<2, 2>(q[4 * i + 1], h);
            q[4 * i + 2] = with_high<4, 2>(q[4 * i + 2], h), q[4 * i + 3] = with_high<6, 2>(q[4 * i + 3], h);
        }
    }
}

template <bool super>
inline F scale_of(const Panel& panel, long group, F unit) {
    if constexpr (super) return load_i8(reinterpret_cast<const std::int8_t*>(panel.scale) + group * kPanel) * unit;
    return load_f16(reinterpret_cast<const std::uint16_t*>(panel.scale) + group * kPanel);
}

template <bool super>
inline F minimum_of(const Panel& panel, long group, F unit) {
    if constexpr (super) return load_u8(panel.minimum + group * kPanel) * unit;
    return load_f16(reinterpret_cast<const std::uint16_t*>(panel.minimum) + group * kPanel);
}

inline F unit_at(const std::uint8_t* units, long block) {
    return load_f16(reinterpret_cast<const std::uint16_t*>(units) + block / (kSuper / kBlock) * kPanel);
}

template <int bits>
inline I dot(I sum, B weights, B x) {
    if constexpr (bits == 8) return dot_byte(sum, weights, x);
    return dot_small(sum, weights, x);
}

// body(0) ... body(n - 1) with compile-time numbers, so that what they index stays in registers.
template <int... i, typename Body>
inline __attribute__((always_inline)) void each_of(std::integer_sequence<int, i...>, const Body& body) {
    (body(Count<i>{}), ...);
}
template <int n, typename Body>
inline __attribute__((always_inline)) void each(const Body& body) {
    each_of(std::make_integer_sequence<int, n>{}, body);
}

// Products whose sums first grow in 16 bits: d[r] = start(r) + what `dots` registers give with row r of the
// activations. Rows are `apart` bytes from each other; `weights(j)` gives register j.
template <int bits, int dots, int R, typename Weights, typename Start>
inline __attribute__((always_inline)) void dots_in_runs(I (&d)[R], const Weights& weights, const Start& start,
                                                        const std::int8_t* a, long apart) {
    constexpr int run = kRun<bits> < dots ? kRun<bits> : dots;
    each<dots / run>([&](auto part) {
        constexpr int first = decltype(part)::value * run;
        Short sums[R];
        each<run>([&](auto i) {
            constexpr int j = first + decltype(i)::value;
            const B w = weights(Count<j>{});
            each<R>([&](auto row) {
                constexpr int r = decltype(row)::value;
                const Short products = multiply(w, repeat4(a + r * apart + 4 * j));
                sums[r] = j == first ? products : sums[r] + products;
            });
        });
        each<R>([&](auto row) {
            constexpr int r = decltype(row)::value;
            d[r] = widen_add(first == 0 ? start(r) : d[r], sums[r]);
        });
    });
}

// The zero point as the operands have it: bytes may have been shifted into unsigned range.
inline int operand_zero(const Format& format) { return format.bits == 8 ? kByteZero : format.zero; }

// ---- few rows -----------------------------------------------------------------------------------------------------

void arrange(const Layout& layout, const Activations& x, long row, long row_end, const Records& to) {
    const int group = layout.format.group, zero = operand_zero(layout.format), per_block = kBlock / group;
    const long blocks = x.cols / kBlock;
    const std::int32_t* sums = group == kBlock ? x.sums32 : x.sums16;
    for (long r = row; r < row_end; ++r)
        for (long block = 0; block < blocks; ++block) {
            const long at = r * blocks + block;
            Record& one = to.at[block * to.stride + r - row];
            __builtin_memcpy(one.q, x.q + at * kBlock, kBlock);
            one.scale = x.scale[at];
            for (int g = 0; g < per_block; ++g) {
                const std::int32_t total = sums[at * per_block + g];
                one.start[g] = -zero * total;
                one.weight[g] = one.scale * static_cast<float>(total);
            }
        }
}

// One panel times R rows, of which the first begins at `x`.
template <int bits, int group, bool super, bool minimum, int R>
inline void panel_rows(const Panel& panel, const Record* x, long stride, long blocks, F (&sum)[R]) {
    constexpr int per_block = kBlock / group;  // groups a block
    constexpr int dots = 8 / per_block;        // registers a group
    for (int r = 0; r < R; ++r) sum[r] = zeros();
    F unit = zeros(), minimum_unit = zeros();
    for (long block = 0; block < blocks; ++block, x += stride) {
        if (super && block % (kSuper / kBlock) == 0) {
            unit = unit_at(panel.unit, block);
            if (minimum) minimum_unit = zeros() - unit_at(panel.minimum_unit, block);
        }
        fetch_ahead<bits>(panel, block);
        B q[8];
        unpack_block<bits>(panel, block, q);
        each<per_block>([&](auto part) {
            constexpr int g = decltype(part)::value;
            const long at = block * per_block + g;
            const F scale = scale_of<super>(panel, at, unit);
            F least = zeros();
            if constexpr (minimum) least = minimum_of<super>(panel, at, minimum_unit);
            const auto start = [&](int r) { return set_i(x[r].start[g]); };
            const auto add = [&](int r, I dots_of_row) {
                sum[r] = fma(to_float(dots_of_row) * scale, set(x[r].scale), sum[r]);
                if constexpr (minimum) sum[r] = fma(least, set(x[r].weight[g]), sum[r]);
            };
            if constexpr (kRun<bits> > 1) {
                I d[R];
                dots_in_runs<bits, dots>(
                    d, [&](auto j) { return q[g * dots + j.value]; }, start, x->q + g * group, sizeof(Record));
                for (int r = 0; r < R; ++r) add(r, d[r]);
            } else {
                for (int r = 0; r < R; ++r) {  // one row after the other: registers hold no more than its sums
                    const std::int8_t* a = x[r].q + g * group;
                    I even = start(r), odd = zeros_i();  // two sums wait half as long for each other
                    for (int j = 0; j < dots; j += 2) {
                        even = dot<bits>(even, q[g * dots + j], repeat4(a + 4 * j));
                        odd = dot<bits>(odd, q[g * dots + j + 1], repeat4(a + 4 * j + 4));
                    }
                    add(r, even + odd);
                }
            }
        });
    }
}

template <int bits, int group, bool super, bool minimum, int R>
inline void store_rows(const Layout& layout, const std::uint8_t* bytes, const Records& records, long row, long p,
                       float* out, long stride) {
    F sum[R];
    panel_rows<bits, group, super, minimum, R>(panel_of(layout, bytes, p), records.at + row, records.stride,
                                               layout.cols / kBlock, sum);
    const long left = layout.rows - p * kPanel;
    for (int r = 0; r < R; ++r) {
        float* to = out + r * stride;
        left >= kPanel ? store(to, sum[r]) : store_some(to, sum[r], static_cast<int>(left));
    }
}

template <int bits, int group, bool super, bool minimum>
void direct_as(const Layout& layout, const std::uint8_t* bytes, const Records& records, long rows, long panel,
               long panel_end, float* out, long stride) {
    for (long p = panel; p < panel_end; ++p, out += kPanel) {
        long r = 0;
        const auto together = [&](auto count) {
            constexpr int R = decltype(count)::value;
            for (; rows - r >= R; r += R)
                store_rows<bits, group, super, minimum, R>(layout, bytes, records, r, p, out + r * stride, stride);
        };
        if constexpr (kDirectRows >= 10) together(Count<10>{});
        if constexpr (kDirectRows >= 8) together(Count<8>{});
        if constexpr (kDirectRows >= 4) together(Count<4>{});
        together(Count<2>{});
        together(Count<1>{});
    }
}

// ---- many rows ----------------------------------------------------------------------------------------------------

template <int bits, int group, bool super, bool minimum>
void unpack_as(const Layout& layout, const std::uint8_t* bytes, long first, const Tile& tile) {
    constexpr int per_block = kBlock / group;
    for (long p = 0; p < tile.panels; ++p) {
        const long source = first + p < layout.panels ? first + p : layout.panels - 1;  // beside the last: never stored
        const Panel panel = panel_of(layout, bytes, source);
        F unit = zeros(), minimum_unit = zeros();
        for (long block = 0; block < layout.cols / kBlock; ++block) {
            if (super && block % (kSuper / kBlock) == 0) {
                unit = unit_at(panel.unit, block);
                if (minimum) minimum_unit = zeros() - unit_at(panel.minimum_unit, block);
            }
            B q[8];
            unpack_block<bits>(panel, block, q);
            for (int j = 0; j < 8; ++j) store_bytes(tile.q + ((block * 8 + j) * tile.panels + p) * 64, q[j]);
            for (long at = block * per_block; at < (block + 1) * per_block; ++at) {
                store(tile.scale + (at * tile.panels + p) * kPanel, scale_of<super>(panel, at, unit));
                if constexpr (minimum)
                    store(tile.minimum + (at * tile.panels + p) * kPanel, minimum_of<super>(panel, at, minimum_unit));
            }
        }
    }
}

void correct(const Layout& layout, const Activations& x, long row, long row_end, std::int32_t* start, float* weight) {
    const int group = layout.format.group, zero = operand_zero(layout.format);
    const long groups = x.cols / group, blocks = x.cols / kBlock;
    const std::int32_t* sums = group == kBlock ? x.sums32 : x.sums16;
    for (long r = row; r < row_end; ++r)
        for (long g = 0; g < groups; ++g) {
            const std::int32_t total = sums[r * groups + g];
            start[r * groups + g] = -zero * total;
            weight[r * groups + g] = x.scale[r * blocks + g * group / kBlock] * static_cast<float>(total);
        }
}

// kTilePanels panels times R rows, all columns.
template <int bits, int group, bool minimum, int R>
inline void tile_rows(const Tile& tile, const Activations& x, const Corrections& corrections, long row, float* out,
                      long stride, long columns) {
    constexpr int P = kTilePanels, dots = group / 4;
    const long groups = x.cols / group, blocks = x.cols / kBlock;
    F sum[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = zeros();
    const std::uint8_t* q = tile.q;
    const std::int8_t* a = x.q + row * x.cols;
    for (long g = 0; g < groups; ++g) {
        const auto start = [&](int r) { return set_i(corrections.start[(row + r) * groups + g]); };
        I d[R][P];
        if constexpr (kRun<bits> > 1) {
            for (int p = 0; p < P; ++p) {
                I of_panel[R];
                dots_in_runs<bits, dots>(
                    of_panel, [&](auto j) { return load_bytes(q + (j.value * P + p) * 64); }, start, a, x.cols);
                for (int r = 0; r < R; ++r) d[r][p] = of_panel[r];
            }
            q += P * dots * 64, a += 4 * dots;
        } else {
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) d[r][p] = start(r);
            for (int j = 0; j < dots; ++j, q += P * 64, a += 4) {
                B w[P];
                for (int p = 0; p < P; ++p) w[p] = load_bytes(q + p * 64);
                for (int r = 0; r < R; ++r) {
                    const B four = repeat4(a + r * x.cols);
                    for (int p = 0; p < P; ++p) d[r][p] = dot<bits>(d[r][p], w[p], four);
                }
            }
        }
        for (int p = 0; p < P; ++p) {
            const F scale = load(tile.scale + (g * P + p) * kPanel);
            for (int r = 0; r < R; ++r) {
                const F factor = set(x.scale[(row + r) * blocks + g * group / kBlock]);
                sum[r][p] = fma(to_float(d[r][p]) * scale, factor, sum[r][p]);
            }
            if constexpr (minimum) {
                const F least = load(tile.minimum + (g * P + p) * kPanel);
                for (int r = 0; r < R; ++r)
                    sum[r][p] = fma(least, set(corrections.weight[(row + r) * groups + g]), sum[r][p]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
            const long left = columns - p * kPanel;
            float* to = out + r * stride + p * kPanel;
            if (left >= kPanel) store(to, sum[r][p]);
            else if (left > 0) store_some(to, sum[r][p], static_cast<int>(left));
        }
}

template <int bits, int group, bool minimum>
void tiled_as(const Tile& tile, const Activations& x, const Corrections& corrections, long row, long row_end,
              float* out, long stride, long columns) {
    long r = row;
    const auto rows = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; row_end - r >= R; r += R)
            tile_rows<bits, group, minimum, R>(tile, x, corrections, r, out + (r - row) * stride, stride, columns);
    };
    rows(Count<kTileRows<bits>>{});
    if constexpr (kTileRows<bits> > 4) rows(Count<4>{});
    if constexpr (kTileRows<bits> > 2) rows(Count<2>{});
    rows(Count<1>{});
}

// ---- from a format to its instance --------------------------------------------------------------------------------

// Calls `with(bits, group, super, minimum)` as compile-time numbers: one case for each shape in kFormats.
template <typename With>
inline void specialise(const Format& f, const With& with) {
    using Yes = Count<1>;
    using No = Count<0>;
    const int key = f.bits * 100 + (f.group == 16) * 4 + f.super * 2 + f.minimum;
    switch (key) {
        case 400:
            return with(Count<4>{}, Count<32>{}, No{}, No{});
        case 401:
            return with(Count<4>{}, Count<32>{}, No{}, Yes{});
        case 403:
            return with(Count<4>{}, Count<32>{}, Yes{}, Yes{});
        case 406:
            return with(Count<4>{}, Count<16>{}, Yes{}, No{});
        case 407:
            return with(Count<4>{}, Count<16>{}, Yes{}, Yes{});
        case 500:
            return with(Count<5>{}, Count<32>{}, No{}, No{});
        case 501:
            return with(Count<5>{}, Count<32>{}, No{}, Yes{});
        case 503:
            return with(Count<5>{}, Count<32>{}, Yes{}, Yes{});
        case 606:
            return with(Count<6>{}, Count<16>{}, Yes{}, No{});
        case 800:
            return with(Count<8>{}, Count<32>{}, No{}, No{});
        case 802:
            return with(Count<8>{}, Count<32>{}, Yes{}, No{});
    }
}

void direct(const Layout& layout, const std::uint8_t* bytes, const Records& records, long rows, long panel,
            long panel_end, float* out, long stride) {
    specialise(layout.format, [&](auto bits, auto group, auto super, auto minimum) {
        direct_as<decltype(bits)::value, decltype(group)::value, decltype(super)::value, decltype(minimum)::value>(
            layout, bytes, records, rows, panel, panel_end, out, stride);
    });
}

void unpack(const Layout& layout, const std::uint8_t* bytes, long panel, const Tile& tile) {
    specialise(layout.format, [&](auto bits, auto group, auto super, auto minimum) {
        unpack_as<decltype(bits)::value, decltype(group)::value, decltype(super)::value, decltype(minimum)::value>(
            layout, bytes, panel, tile);
    });
}

void tiled(const Layout& layout, const Tile& tile, const Activations& x, const Corrections& corrections, long row,
           long row_end, float* out, long stride, long columns) {
    specialise(layout.format, [&](auto bits, auto group, auto, auto minimum) {
        constexpr int stored = decltype(bits)::value;  // 4 to 6 bits multiply alike, but for the length of a run
        constexpr int operand = stored == 8 ? 8 : kRun<stored> == kRun<4> ? 4 : stored;
        tiled_as<operand, decltype(group)::value, decltype(minimum)::value>(tile, x, corrections, row, row_end, out,
                                                                            stride, columns);
    });
}

}  // namespace
}  // namespace pocketgem
