#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "kernel_set.h"

namespace pocketgem {
namespace {

constexpr long kFewRows = 4;              // spans of up to this many rows go row by row, their keys in chunks
constexpr long kLeastKeys = 64;           // of a chunk; doubled while a row has more than
constexpr long kManyChunks = 16;          // so many chunks shorter than
constexpr long kGoodKeys = 256;           // this, or more than
constexpr long kMostChunks = 64;          // so many at all: that bounds the memory of the partial sums
constexpr long kTileNumbers = 72 << 10;   // query rows of a tile times head size: it leaves the caches room for keys
constexpr long kMostQueries = 192;        // of a tile
constexpr long kNumbersATask = 16 << 10;  // keys written by one task: less than this is not worth a second thread

struct Range {
    long begin, end;
};

// Positions of the keys a row sees.
Range seen_by(const Queries& a, const KeySpan& span, long row) {
    const long at = static_cast<long>(a.sight.positions[row]);
    const long last = a.sight.last ? static_cast<long>(a.sight.last[row]) : at;
    const long oldest = a.window ? at - a.window + 1 : span.first;
    return {std::max(oldest, span.first), std::min(last + 1, span.first + span.keys)};
}

// Few keys are shared by all threads, many are not cut too small. Depends on nothing but the row's own keys.
long chunk_keys(Range seen) {
    long keys = kLeastKeys;
    while ((seen.end + keys - 1) / keys - seen.begin / keys > (keys < kGoodKeys ? kManyChunks : kMostChunks)) keys *= 2;
    return keys;
}

// The chunks of one row and one key head; whoever finishes the last of them merges all.
struct Merge {
    long row, kv_head, chunks, at;  // at: the first chunk's partial sums
};

struct Task {
    const KeySpan* span;
    long kv_head, row;
    long rows;          // of a tile; 0 for a chunk
    Range keys;         // of a chunk
    std::size_t merge;  // of a chunk
    long partial;
};

struct Plan {
    std::vector<Task> tasks;
    std::vector<Merge> merges;
    long partials = 0;  // floats
};

void add_chunks(Plan& plan, const KernelSet& set, const Queries& a, const KeySpan& span, long row) {
    const Range seen = seen_by(a, span, row);
    if (seen.begin >= seen.end) {
        std::fill_n(a.out + row * a.heads * a.dim, a.heads * a.dim, 0.0f);
        return;
    }
    const long keys = chunk_keys(seen), size = set.attention.partial_floats(a.dim, a.heads / a.kv_heads);
    for (long head = 0; head < a.kv_heads; ++head) {
        plan.merges.push_back({row, head, 0, plan.partials});
        for (long begin = seen.begin; begin < seen.end; begin = begin / keys * keys + keys) {
            const long end = std::min(seen.end, begin / keys * keys + keys);
            plan.tasks.push_back({&span, head, row, 0, {begin, end}, plan.merges.size() - 1, plan.partials});
            plan.merges.back().chunks += 1;
            plan.partials += size;
        }
    }
}

// The last rows see the most keys and so come first.
void add_tiles(Plan& plan, const Queries& a, const KeySpan& span) {
    const long group = a.heads / a.kv_heads;
    const long rows = std::max(1l, std::min(kMostQueries, kTileNumbers / a.dim) / group);
    const long tiles = (span.stop - span.start + rows - 1) / rows;
    for (long tile = tiles - 1; tile >= 0; --tile)
        for (long head = 0; head < a.kv_heads; ++head) {
            const long row = span.start + tile * rows;
            plan.tasks.push_back({&span, head, row, std::min(rows, span.stop - row), {}, 0, 0});
        }
}

Plan plan_of(const KernelSet& set, const Queries& a, const KeySpan* spans, long count) {
    Plan plan;
    for (long i = 0; i < count; ++i) {
        if (spans[i].stop - spans[i].start > kFewRows) {
            add_tiles(plan, a, spans[i]);
        } else {
            for (long row = spans[i].start; row < spans[i].stop; ++row) add_chunks(plan, set, a, spans[i], row);
        }
    }
    return plan;
}

}  // namespace

void write_keys(Kernels& kernels, const NewKeys& a, const KeyTarget* targets, long count) {
    struct Part {
        const KeyTarget* target;
        long begin, end;
    };
    std::vector<Part> parts;
    const long row_size = a.kv_heads * a.dim, each = std::max(1l, kNumbersATask / row_size);
    for (long i = 0; i < count; ++i)
        for (long row = targets[i].start; row < targets[i].stop; row += each)
            parts.push_back({targets + i, row, std::min(targets[i].stop, row + each)});
    const auto write = [&](const Part& part) {
        for (long row = part.begin; row < part.end; ++row)
            for (long head = 0; head < a.kv_heads; ++head) {
                const long at = (row - part.target->start) * row_size + head * a.dim;
                kernels.set.attention.write_head(a, row, head, part.target->k + at, part.target->v + at);
            }
    };
    long rows = 0;
    for (const Part& part : parts) rows += part.end - part.begin;
    if (rows * row_size <= kNumbersATask) {
        for (const Part& part : parts) write(part);
    } else {
        kernels.pool.run(static_cast<long>(parts.size()), [&](long i) { write(parts[static_cast<std::size_t>(i)]); });
    }
}

void attend(Kernels& kernels, const Queries& a, const KeySpan* spans, long count) {
    const AttentionKernels& kernel = kernels.set.attention;
    const long group = a.heads / a.kv_heads;
    const Plan plan = plan_of(kernels.set, a, spans, count);
    Lender::Loan loan(kernels.scratch);
    float* partials = loan->of<float>(static_cast<std::size_t>(plan.partials));
    std::unique_ptr<std::atomic<long>[]> left(new std::atomic<long>[plan.merges.size()]);
    for (std::size_t i = 0; i < plan.merges.size(); ++i) left[i] = plan.merges[i].chunks;
    kernels.pool.run(static_cast<long>(plan.tasks.size()), [&](long i) {
        const Task& task = plan.tasks[static_cast<std::size_t>(i)];
        Lender::Loan scratch(kernels.scratch);
        if (task.rows) {
            float* memory = scratch->of<float>(static_cast<std::size_t>(kernel.tile_floats(a.dim, task.rows * group)));
            return kernel.tile(a, *task.span, task.kv_head, task.row, task.rows, memory);
        }
        float* memory = scratch->of<float>(static_cast<std::size_t>(kernel.chunk_floats(a.dim, group)));
        const auto [begin, end] = task.keys;
        kernel.chunk(a, *task.span, task.kv_head, task.row, begin, end, partials + task.partial, memory);
        const Merge& merge = plan.merges[task.merge];
        if (left[task.merge].fetch_sub(1) == 1)
            kernel.merge(a, partials + merge.at, merge.chunks, merge.row, merge.kv_head);
    });
}

}  // namespace pocketgem
