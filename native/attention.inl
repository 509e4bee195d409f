// Attention with a running softmax: the scores of a block of keys live only until its values are added. Powers are of
// two, with log2(e) folded into the queries.
//
// One row (decode) reads each key once for all query heads of its group: lanes run along the head, and the partial sums
// of a chunk of keys are merged later. Many rows (prefill) turn a block of keys into float lanes-of-keys once, and then
// all is the same small matrix product. Blocks and chunks begin at multiples of their size in absolute positions, so a
// row's result does not depend on what else is computed beside it.

#include <cstring>

namespace pocketgem {
namespace {

constexpr long kBlockKeys = 64;   // keys, or numbers of a head, that one product goes over
constexpr long kQueryRows = 6;    // queries of one product
constexpr long kDecodeKeys = 64;  // keys of one decode block: its values are on their way while it is scored
constexpr long kKeysAhead = 8;    // keys asked for before they are scored
constexpr int kWide = kSums / static_cast<int>(kQueryRows);  // vectors of a product's row

// ---- what both ways share -------------------------------------------------------------------------------------------

// x [dim] of a row's head -> normed, rotated and scaled.
inline void turn(const float* x, const float* weight, const float* cos, const float* sin, long dim, float eps,
                 float scale, float* out) {
    const F times = set(inverse_rms(x, dim, eps)), scaled = set(scale);
    const long half = dim / 2;
    for (long i = 0; i < half; i += 16) {
        F first = load(x + i) * times, second = load(x + half + i) * times;
        if (weight) first = first * load(weight + i), second = second * load(weight + half + i);
        const F c = load(cos + i), s = load(sin + i);
        store(out + i, (first * c - second * s) * scaled);
        store(out + half + i, (second * c + first * s) * scaled);
    }
}

inline void turn_query(const Queries& a, long row, long head, float* out) {
    const long half = a.dim / 2;
    turn(a.q + (row * a.heads + head) * a.dim, a.norm, a.cos + row * half, a.sin + row * half, a.dim, a.eps,
         a.scale * kLog2E, out);
}

// Positions [begin, end) of the keys a row sees.
struct Seen {
    long begin, end;
};

inline Seen seen_by(const Queries& a, const KeySpan& span, long row) {
    const long at = static_cast<long>(a.sight.positions[row]), keys = span.first + span.keys;
    const long last = a.sight.last ? static_cast<long>(a.sight.last[row]) : at;
    const long oldest = a.window ? at - a.window + 1 : span.first;
    return {oldest > span.first ? oldest : span.first, last + 1 < keys ? last + 1 : keys};
}

// Limits for `smaller`: at `kLimits.at + 64 - from` minus infinity up to `from`, then infinity; at `+ 128 - to`
// infinity up to `to`, then minus infinity.
struct Limits {
    float at[192];
    constexpr Limits() : at() {
        for (int i = 0; i < 192; ++i) at[i] = i / 64 == 1 ? __builtin_inff() : -__builtin_inff();
    }
};
alignas(64) constexpr Limits kLimits;

inline float power(float x) {  // 2^x
    float out[16];
    store(out, exp2_of(set(x)));
    return out[0];
}

// ---- writing keys ---------------------------------------------------------------------------------------------------

void write_head(const NewKeys& a, long row, long head, std::uint16_t* k, std::uint16_t* v) {
    const long dim = a.dim, half = dim / 2, at = (row * a.kv_heads + head) * dim;
    const F values = set(a.normed_values ? inverse_rms(a.v + at, dim, a.eps) : 1.0f);
    for (long i = 0; i < dim; i += 16) store_bf16(v + i, load(a.v + at + i) * values);
    const F times = set(inverse_rms(a.k + at, dim, a.eps));
    for (long i = 0; i < half; i += 16) {
        F first = load(a.k + at + i) * times, second = load(a.k + at + half + i) * times;
        if (a.norm) first = first * load(a.norm + i), second = second * load(a.norm + half + i);
        const F c = load(a.cos + row * half + i), s = load(a.sin + row * half + i);
        store_bf16(k + i, first * c - second * s);
        store_bf16(k + half + i, second * c + first * s);
    }
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// c [6, 16 * wide] (+)= a [6, depth] b [depth, 64], of b's columns the first 16 * wide.
template <int wide>
inline void multiply(const float* a, long a_row, const float* b, long depth, float* c, long c_row, bool add) {
    F sums[kQueryRows][wide];
#pragma GCC unroll 8
    for (int i = 0; i < kQueryRows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < wide; ++j) sums[i][j] = add ? load(c + i * c_row + 16 * j) : zeros();
    for (long d = 0; d < depth; ++d) {
        F column[wide];
#pragma GCC unroll 8
        for (int j = 0; j < wide; ++j) column[j] = load(b + d * kBlockKeys + 16 * j);
#pragma GCC unroll 8
        for (int i = 0; i < kQueryRows; ++i) {
            const F x = set(a[i * a_row + d]);
#pragma GCC unroll 8
            for (int j = 0; j < wide; ++j) sums[i][j] = fma(x, column[j], sums[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kQueryRows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < wide; ++j) store(c + i * c_row + 16 * j, sums[i][j]);
}

// The same for columns [from, to) in sixteens.
inline void multiply_columns(const float* a, long a_row, const float* b, long depth, float* c, long c_row, bool add,
                             int from, int to) {
    while (from < to) {
        const int left = to - from;
        if (kWide == 4 && left == 4) {
            multiply<kWide>(a, a_row, b + 16 * from, depth, c + 16 * from, c_row, add);
            from += kWide;
        } else if (kWide >= 2 && left >= 2) {
            multiply < kWide<2 ? 1 : 2>(a, a_row, b + 16 * from, depth, c + 16 * from, c_row, add);
            from += 2;
        } else {
            multiply<1>(a, a_row, b + 16 * from, depth, c + 16 * from, c_row, add);
            from += 1;
        }
    }
}

// One tile's work. Query i is head i % group of row i / group; widths are rounded up to whole products.
struct AttentionTile {
    const Queries& a;
    const KeySpan& span;
    long kv_head, row, rows, group, queries, padded, width;
    float *q, *sums, *scores, *keys, *values, *totals, *highest;

    AttentionTile(const Queries& a, const KeySpan& span, long kv_head, long row, long rows, float* scratch)
        : a(a),
          span(span),
          kv_head(kv_head),
          row(row),
          rows(rows),
          group(a.heads / a.kv_heads),
          queries(rows * group),
          padded((queries + kQueryRows - 1) / kQueryRows * kQueryRows),
          width((a.dim + kBlockKeys - 1) / kBlockKeys * kBlockKeys) {
        q = scratch;                           // [padded, width]
        sums = q + padded * width;             // [padded, width]
        scores = sums + padded * width;        // [padded, 64]
        keys = scores + padded * kBlockKeys;   // [width, 64]
        values = keys + width * kBlockKeys;    // [width / 64, 64, 64]
        totals = values + width * kBlockKeys;  // [padded, 16]
        highest = totals + padded * 16;        // [padded]
    }

    // Keys of the block at `block` that some of the queries [query, query + count) see, counted from its first.
    Seen reach(long query, long count, long block) const {
        Seen all{kBlockKeys, 0};
        const long last = query + count < queries ? query + count : queries;
        for (long r = query / group; r <= (last - 1) / group; ++r) {
            const Seen seen = seen_by(a, span, row + r);
            const long begin = seen.begin > block ? seen.begin - block : 0;
            const long end = seen.end - block < kBlockKeys ? seen.end - block : kBlockKeys;
            if (begin >= end) continue;
            all.begin = begin < all.begin ? begin : all.begin;
            all.end = end > all.end ? end : all.end;
        }
        return all;
    }
};

long tile_floats(long dim, long queries) {
    const long padded = (queries + kQueryRows - 1) / kQueryRows * kQueryRows;
    const long width = (dim + kBlockKeys - 1) / kBlockKeys * kBlockKeys;
    return padded * (2 * width + kBlockKeys + 16 + 1) + 2 * width * kBlockKeys;
}

inline void begin_tile(const AttentionTile& t) {
    const long dim = t.a.dim;
    std::memset(t.sums, 0, sizeof(float) * static_cast<std::size_t>(t.padded * t.width));
    std::memset(t.totals, 0, sizeof(float) * static_cast<std::size_t>(t.padded * 16));
    if (t.width != dim || t.padded != t.queries)
        std::memset(t.q, 0, sizeof(float) * static_cast<std::size_t>(t.padded * t.width));
    if (t.width != dim) std::memset(t.keys, 0, sizeof(float) * static_cast<std::size_t>(2 * t.width * kBlockKeys));
    for (long i = 0; i < t.queries; ++i) {
        turn_query(t.a, t.row + i / t.group, t.kv_head * t.group + i % t.group, t.q + i * t.width);
        t.highest[i] = -__builtin_inff();
    }
}

// Keys [seen.begin, seen.end) of a block as floats, a number of the head a row; zeros beside them in their sixteens.
inline void unpack_keys(const AttentionTile& t, long block, Seen seen) {
    const long stride = t.a.kv_heads * t.a.dim;
    const std::uint16_t* k = t.span.k + (block - t.span.first) * stride + t.kv_head * t.a.dim;
    for (long key = seen.begin / 16 * 16; key < seen.end; key += 16)
        for (long d = 0; d < t.a.dim; d += 32) {
            I pairs[16];
#pragma GCC unroll 16
            for (long j = 0; j < 16; ++j) {
                const bool there = key + j >= seen.begin && key + j < seen.end;
                pairs[j] = there ? load_pairs(k + (key + j) * stride + d) : zeros_i();
            }
            transpose(pairs);
#pragma GCC unroll 16
            for (long j = 0; j < 16; ++j) {
                store(t.keys + (d + 2 * j) * kBlockKeys + key, low_bf16(pairs[j]));
                store(t.keys + (d + 2 * j + 1) * kBlockKeys + key, high_bf16(pairs[j]));
            }
        }
}

inline void unpack_values(const AttentionTile& t, long block, Seen seen) {
    const long stride = t.a.kv_heads * t.a.dim, panel = kBlockKeys * kBlockKeys;
    const std::uint16_t* v = t.span.v + (block - t.span.first) * stride + t.kv_head * t.a.dim;
    for (long key = seen.begin; key < seen.end; ++key) {
        float* to = t.values + key * kBlockKeys;
        for (long d = 0; d < t.a.dim; d += 16)
            store(to + d / kBlockKeys * panel + d % kBlockKeys, load_bf16(v + key * stride + d));
    }
}

inline void score_block(const AttentionTile& t, long block) {
    for (long d = 0; d < t.width; d += kBlockKeys)
        for (long i = 0; i < t.padded; i += kQueryRows) {
            const Seen seen = t.reach(i, kQueryRows, block);
            if (seen.begin >= seen.end) continue;
            multiply_columns(t.q + i * t.width + d, t.width, t.keys + d * kBlockKeys, kBlockKeys,
                             t.scores + i * kBlockKeys, kBlockKeys, d > 0, static_cast<int>(seen.begin / 16),
                             static_cast<int>((seen.end + 15) / 16));
        }
}

inline void scale_row(float* x, long n, float factor) {
    const F times = set(factor);
    for (long i = 0; i < n; i += 16) store(x + i, load(x + i) * times);
}

// Scores of one query -> its weights by the highest score so far; sums of earlier blocks follow a new highest.
inline void weigh(const AttentionTile& t, long query, Seen seen) {
    float* s = t.scores + query * kBlockKeys;
    F x[4];
    for (int i = 0; i < 4; ++i) x[i] = load(s + 16 * i);
    if (seen.begin > 0 || seen.end < kBlockKeys)
        for (int i = 0; i < 4; ++i) {
            const F from = load(kLimits.at + 64 - seen.begin + 16 * i), to = load(kLimits.at + 128 - seen.end + 16 * i);
            x[i] = smaller(x[i], smaller(from, to));
        }
    const float here = largest(larger(larger(x[0], x[1]), larger(x[2], x[3])));
    float* total = t.totals + query * 16;
    if (here > t.highest[query]) {
        const float factor = power(t.highest[query] - here);
        scale_row(t.sums + query * t.width, t.width, factor);
        scale_row(total, 16, factor);
        t.highest[query] = here;
    }
    const F highest = set(t.highest[query]);
    for (int i = 0; i < 4; ++i) {
        x[i] = exp2_of(x[i] - highest);
        store(s + 16 * i, x[i]);
    }
    store(total, load(total) + ((x[0] + x[1]) + (x[2] + x[3])));
}

inline void weigh_block(const AttentionTile& t, long block) {
    for (long i = 0; i < t.queries; ++i) {
        const Seen seen = t.reach(i, 1, block);
        if (seen.begin < seen.end) {
            weigh(t, i, seen);
        } else {
            for (int j = 0; j < kBlockKeys; j += 16) store(t.scores + i * kBlockKeys + j, zeros());
        }
    }
}

inline void add_values(const AttentionTile& t, long block) {
    for (long d = 0; d < t.width; d += kBlockKeys)
        for (long i = 0; i < t.padded; i += kQueryRows) {
            const Seen seen = t.reach(i, kQueryRows, block);
            if (seen.begin >= seen.end) continue;
            multiply_columns(t.scores + i * kBlockKeys + seen.begin, kBlockKeys,
                             t.values + d * kBlockKeys + seen.begin * kBlockKeys, seen.end - seen.begin,
                             t.sums + i * t.width + d, t.width, true, 0, 4);
        }
}

inline void end_tile(const AttentionTile& t) {
    for (long i = 0; i < t.queries; ++i) {
        const float total = sum(load(t.totals + i * 16));
        const F times = set(total == 0.0f ? 0.0f : 1.0f / total);  // a row that sees no key gives zeros
        const long head = t.kv_head * t.group + i % t.group;
        float* out = t.a.out + ((t.row + i / t.group) * t.a.heads + head) * t.a.dim;
        for (long d = 0; d < t.a.dim; d += 16) store(out + d, load(t.sums + i * t.width + d) * times);
    }
}

void attend_tile(const Queries& a, const KeySpan& span, long kv_head, long row, long rows, float* scratch) {
    const AttentionTile t(a, span, kv_head, row, rows, scratch);
    begin_tile(t);
    long begin = span.first + span.keys, end = span.first;
    for (long r = 0; r < rows; ++r) {
        const Seen seen = seen_by(a, span, row + r);
        if (seen.begin >= seen.end) continue;
        begin = seen.begin < begin ? seen.begin : begin;
        end = seen.end > end ? seen.end : end;
    }
    for (long block = begin / kBlockKeys * kBlockKeys; block < end; block += kBlockKeys) {
        const Seen seen = t.reach(0, t.queries, block);
        if (seen.begin >= seen.end) continue;
        unpack_keys(t, block, seen);
        unpack_values(t, block, seen);
        score_block(t, block);
        weigh_block(t, block);
        add_values(t, block);
    }
    end_tile(t);
}

// ---- one row --------------------------------------------------------------------------------------------------------

// Numbers of a head in the order in which pairs of bfloat16 come apart: of every 32 first the even, then the odd ones.
inline void split_pairs(const float* x, long dim, float* out) {
    for (long d = 0; d < dim; d += 32)
        for (int i = 0; i < 16; ++i) {
            out[d + i] = x[d + 2 * i];
            out[d + 16 + i] = x[d + 2 * i + 1];
        }
}

inline void join_pairs(const float* x, long dim, float* out) {
    for (long d = 0; d < dim; d += 32)
        for (int i = 0; i < 16; ++i) {
            out[d + 2 * i] = x[d + i];
            out[d + 2 * i + 1] = x[d + 16 + i];
        }
}

// A block of keys and values of one head.
struct KeyRows {
    const std::uint16_t* k;
    const std::uint16_t* v;
    long stride, count, dim;
};

// Products of queries [Q, dim] with K keys, lanes still apart: out[key * step + query].
template <int Q, int K>
inline void multiply_keys(const float* q, const std::uint16_t* const* keys, long dim, F* out, int step) {
    F sums[K][Q];
#pragma GCC unroll 16
    for (int j = 0; j < K; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) sums[j][i] = zeros();
    for (long d = 0; d < dim; d += 32) {
        F low[K], high[K];
#pragma GCC unroll 16
        for (int j = 0; j < K; ++j) {
            const I pairs = load_pairs(keys[j] + d);
            low[j] = low_bf16(pairs), high[j] = high_bf16(pairs);
        }
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) {
            const F even = load(q + i * dim + d), odd = load(q + i * dim + d + 16);
#pragma GCC unroll 16
            for (int j = 0; j < K; ++j) sums[j][i] = fma(even, low[j], sums[j][i]);
#pragma GCC unroll 16
            for (int j = 0; j < K; ++j) sums[j][i] = fma(odd, high[j], sums[j][i]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < K; ++j)
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) out[j * step + i] = sums[j][i];
}

// Lane i of the result: the sum of all lanes of x[i].
inline F lane_sums(const F (&x)[16]) {
    I bits[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) bits[i] = bits_of(x[i]);
    transpose(bits);
    F sums[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sums[i] = float_of_bits(bits[i]);
#pragma GCC unroll 4
    for (int half = 8; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    return sums[0];
}

// Scores of Q queries with a block of keys: s[key * Q + query], minus infinity up to the next whole sixteen.
template <int Q>
inline void score_keys(const float* q, const KeyRows& rows, float* s) {
    constexpr int K = 16 / Q;                                  // keys of sixteen scores
    constexpr int q_step = kSums >= 16 ? Q : (Q < 4 ? Q : 4);  // what registers hold at once
    constexpr int k_step = kSums >= 16 ? K : (4 / q_step);
    for (long key = 0; key < rows.count; key += K) {
        const std::uint16_t* keys[K];
        for (int j = 0; j < K; ++j) {
            const long at = key + j < rows.count ? key + j : rows.count - 1;
            keys[j] = rows.k + at * rows.stride;
            for (long d = 0; d < rows.dim; d += 32) {  // what is asked for past the last key is never waited for
                prefetch(rows.v + at * rows.stride + d);
                prefetch(keys[j] + kKeysAhead * rows.stride + d);
            }
        }
        F products[16];
        for (int j = 0; j < K; j += k_step)
            for (int i = 0; i < Q; i += q_step)
                multiply_keys<q_step, k_step>(q + i * rows.dim, keys + j, rows.dim, products + j * Q + i, Q);
        F sums = lane_sums(products);
        if (rows.count - key < K) sums = smaller(sums, load(kLimits.at + 128 - (rows.count - key) * Q));
        store(s + key * Q, sums);
    }
}

// Scores -> weights; `highest` and `total` are brought up to date, and factor[query] is what earlier sums shrink by.
template <int Q>
inline void weigh_keys(float* s, long count, float* highest, float* total, float* factor) {
    const long scores = (count * Q + 15) / 16 * 16;
    float lanes[16];
    F top = load(s);
    for (long i = 16; i < scores; i += 16) top = larger(top, load(s + i));
    store(lanes, top);
    for (int i = 0; i < Q; ++i) {
        float here = highest[i];
        for (int j = i; j < 16; j += Q) here = lanes[j] > here ? lanes[j] : here;
        factor[i] = here > highest[i] ? power(highest[i] - here) : 1.0f;
        highest[i] = here;
    }
    for (int j = 0; j < 16; ++j) lanes[j] = highest[j % Q];
    const F by = load(lanes);
    F sums = zeros();
    for (long i = 0; i < scores; i += 16) {
        const F x = exp2_of(load(s + i) - by);
        store(s + i, x);
        sums = sums + x;
    }
    store(lanes, sums);
    for (int i = 0; i < Q; ++i) {
        float here = 0;
        for (int j = i; j < 16; j += Q) here += lanes[j];
        total[i] = total[i] * factor[i] + here;
    }
}

// sums [Q, dim] = sums * factor + weights * values, for numbers [d, d + 32 * wide) of the head.
template <int Q, int wide>
inline void add_weighted(const float* weights, int step, const KeyRows& rows, long d, const float* factor,
                         float* sums) {
    F even[Q][wide], odd[Q][wide];
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 16
        for (int w = 0; w < wide; ++w) {
            even[i][w] = load(sums + i * rows.dim + d + 32 * w) * set(factor[i]);
            odd[i][w] = load(sums + i * rows.dim + d + 32 * w + 16) * set(factor[i]);
        }
    for (long key = 0; key < rows.count; ++key) {
        F low[wide], high[wide];
#pragma GCC unroll 16
        for (int w = 0; w < wide; ++w) {
            const I pairs = load_pairs(rows.v + key * rows.stride + d + 32 * w);
            low[w] = low_bf16(pairs), high[w] = high_bf16(pairs);
        }
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) {
            const F x = set(weights[key * step + i]);
#pragma GCC unroll 16
            for (int w = 0; w < wide; ++w) {
                even[i][w] = fma(x, low[w], even[i][w]);
                odd[i][w] = fma(x, high[w], odd[i][w]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 16
        for (int w = 0; w < wide; ++w) {
            store(sums + i * rows.dim + d + 32 * w, even[i][w]);
            store(sums + i * rows.dim + d + 32 * w + 16, odd[i][w]);
        }
}

template <int Q>
inline void add_weighted_values(const float* weights, const KeyRows& rows, const float* factor, float* sums) {
    constexpr int q_step = kSums >= 16 ? Q : (Q < 2 ? Q : 2);
    constexpr int wide = kSums < 16 ? 1 : (Q == 8 ? 1 : Q == 4 ? 2 : 4);
    for (int i = 0; i < Q; i += q_step) {
        long d = 0;
        for (; d + 32 * wide <= rows.dim; d += 32 * wide)
            add_weighted<q_step, wide>(weights + i, Q, rows, d, factor + i, sums + i * rows.dim);
        for (; d < rows.dim; d += 32) add_weighted<q_step, 1>(weights + i, Q, rows, d, factor + i, sums + i * rows.dim);
    }
}

// A chunk's partial sums: highest scores [group], totals [group], sums [group, dim] in the order of `split_pairs`.
long partial_floats(long dim, long group) { return (2 * group + 15) / 16 * 16 + group * dim; }

inline float* sums_of(float* partial, long group) { return partial + (2 * group + 15) / 16 * 16; }

long chunk_floats(long dim, long group) { return (group + 1) * dim + kDecodeKeys * 8; }

template <int Q>
inline void attend_block(const float* q, const KeyRows& rows, float* scores, float* highest, float* total,
                         float* sums) {
    float factor[Q];
    score_keys<Q>(q, rows, scores);
    weigh_keys<Q>(scores, rows.count, highest, total, factor);
    add_weighted_values<Q>(scores, rows, factor, sums);
}

inline void attend_keys(const float* q, const KeyRows& rows, long group, float* scores, float* partial) {
    for (long i = 0; i < group;) {
        const long left = group - i;
        float *highest = partial + i, *total = partial + group + i, *sums = sums_of(partial, group) + i * rows.dim;
        const float* from = q + i * rows.dim;
        if (left >= 8) {
            attend_block<8>(from, rows, scores, highest, total, sums), i += 8;
        } else if (left >= 4) {
            attend_block<4>(from, rows, scores, highest, total, sums), i += 4;
        } else if (left >= 2) {
            attend_block<2>(from, rows, scores, highest, total, sums), i += 2;
        } else {
            attend_block<1>(from, rows, scores, highest, total, sums), i += 1;
        }
    }
}

void attend_chunk(const Queries& a, const KeySpan& span, long kv_head, long row, long begin, long end, float* partial,
                  float* scratch) {
    const long group = a.heads / a.kv_heads, dim = a.dim, stride = a.kv_heads * dim;
    float *q = scratch, *turned = q + group * dim, *scores = turned + dim;
    for (long i = 0; i < group; ++i) {
        turn_query(a, row, kv_head * group + i, turned);
        split_pairs(turned, dim, q + i * dim);
        partial[i] = -__builtin_inff(), partial[group + i] = 0;
    }
    std::memset(sums_of(partial, group), 0, sizeof(float) * static_cast<std::size_t>(group * dim));
    while (begin < end) {
        const long next = begin / kDecodeKeys * kDecodeKeys + kDecodeKeys, stop = next < end ? next : end;
        const long at = (begin - span.first) * stride + kv_head * dim;
        attend_keys(q, {span.k + at, span.v + at, stride, stop - begin, dim}, group, scores, partial);
        begin = stop;
    }
}

void merge_chunks(const Queries& a, float* partials, long chunks, long row, long kv_head) {
    const long group = a.heads / a.kv_heads, dim = a.dim, size = partial_floats(dim, group);
    for (long i = 0; i < group; ++i) {
        float *factors = partials + i, *sums = sums_of(partials, group) + i * dim;  // of the first chunk
        float highest = -__builtin_inff(), total = 0;
        for (long c = 0; c < chunks; ++c) highest = factors[c * size] > highest ? factors[c * size] : highest;
        for (long c = 0; c < chunks; ++c) {
            factors[c * size] = power(factors[c * size] - highest);
            total += factors[c * size + group] * factors[c * size];
        }
        const F times = set(1.0f / total);
        for (long d = 0; d < dim; d += 16) {
            F all = zeros();
            for (long c = 0; c < chunks; ++c) all = fma(load(sums + c * size + d), set(factors[c * size]), all);
            store(sums + d, all * times);
        }
        join_pairs(sums, dim, a.out + (row * a.heads + kv_head * group + i) * dim);
    }
}

constexpr AttentionKernels kAttention = {write_head,   attend_tile,    tile_floats, attend_chunk,
                                         chunk_floats, partial_floats, merge_chunks};

}  // namespace
}  // namespace pocketgem
