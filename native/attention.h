// Grouped-query attention over bfloat16 keys and values, with the norms and rotations before it.
#pragma once

#include <cstdint>

namespace pocketgem {

// Rows [start, stop) of a call belong to one sequence, which holds `keys` keys at positions first, first + 1, ...
struct KeySpan {
    long start = 0, stop = 0;
    const std::uint16_t* k = nullptr;  // [keys, kv_heads, dim]
    const std::uint16_t* v = nullptr;  // [keys, kv_heads, dim]
    long first = 0, keys = 0;
};

// What rows see: a row at position p the keys at positions p - window + 1 ... p; all up to p where the window is 0.
// Rows of one image see each other: `last` is the last position each of them sees, null where that is the row's own.
struct Sight {
    const std::int64_t* positions = nullptr;  // [rows]
    const std::int64_t* last = nullptr;       // [rows]
};

// What the rows of a call have in common. dim is a multiple of 32.
struct Queries {
    const float* q = nullptr;     // [rows, heads, dim], as projected: norm and rotation are still to come
    const float* norm = nullptr;  // [dim], or null for no weight
    float eps = 0;
    const float* cos = nullptr;  // [rows, dim / 2]
    const float* sin = nullptr;  // [rows, dim / 2]
    Sight sight;
    long heads = 0, kv_heads = 0, dim = 0, window = 0;
    float scale = 1;       // of the scores
    float* out = nullptr;  // [rows, heads, dim]
};

// One sequence's share of the rows that write keys, and where they go.
struct KeyTarget {
    long start = 0, stop = 0;
    std::uint16_t* k = nullptr;  // [stop - start, kv_heads, dim]
    std::uint16_t* v = nullptr;  // [stop - start, kv_heads, dim]
};

struct NewKeys {
    const float* k = nullptr;     // [rows, kv_heads, dim], as projected
    const float* v = nullptr;     // the same; may be k
    const float* norm = nullptr;  // [dim], of the keys
    float eps = 0;
    bool normed_values = false;  // values are normed too, without a weight
    const float* cos = nullptr;  // [rows, dim / 2]
    const float* sin = nullptr;  // [rows, dim / 2]
    long kv_heads = 0, dim = 0;
};

struct AttentionKernels {
    // One head of one row: keys normed and rotated, values normed or as they are, both rounded to the nearest even.
    void (*write_head)(const NewKeys& keys, long row, long head, std::uint16_t* k, std::uint16_t* v);

    // Many rows: [row, row + rows) of one sequence, the query heads of one key head, all keys they see.
    void (*tile)(const Queries& queries, const KeySpan& span, long kv_head, long row, long rows, float* scratch);
    long (*tile_floats)(long dim, long queries);  // scratch for rows * heads / kv_heads queries

    // One row: the query heads of one key head over the keys at positions [begin, end); their partial sums.
    void (*chunk)(const Queries& queries, const KeySpan& span, long kv_head, long row, long begin, long end,
                  float* partial, float* scratch);
    long (*chunk_floats)(long dim, long group);    // scratch
    long (*partial_floats)(long dim, long group);  // one chunk's partial sums

    // The partial sums of a row's chunks, one after the other -> its outputs of the key head's query heads. They are
    // overwritten.
    void (*merge)(const Queries& queries, float* partials, long chunks, long row, long kv_head);
};

struct Kernels;

// Writes the keys and values of all rows that a target names.
void write_keys(Kernels& kernels, const NewKeys& keys, const KeyTarget* targets, long count);

// Attends from all rows that a span names. A span's results do not depend on the other spans or on the threads.
void attend(Kernels& kernels, const Queries& queries, const KeySpan* spans, long count);

}  // namespace pocketgem
