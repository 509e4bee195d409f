#include "product.h"

#include <algorithm>

namespace pocketgem {
namespace {

constexpr long kTileBytes = 256 << 10;  // unpacked weights a task works on: they stay in the second-level cache
constexpr long kTasksAThread = 8;       // small enough that no thread waits long for the last one
constexpr long kLeastBytes = 32 << 10;  // and large enough that taking a task costs nothing

// ---- activations --------------------------------------------------------------------------------------------------

}  // namespace

Activations room_in(Rounded& buffers, long rows, long cols) {
    const auto size = static_cast<std::size_t>(rows * cols);
    return {rows,
            cols,
            buffers.q.of<std::int8_t>(size),
            buffers.scales.of<float>(size / 32),
            buffers.sums16.of<std::int32_t>(size / 16),
            buffers.sums32.of<std::int32_t>(size / 32)};
}

bool are_few(const Kernels& k, long rows) { return rows <= k.set.matmul.few_rows; }

namespace {

// Room for A x of every matrix that is changed. Returns whether any is.
bool make_room(Kernels& k, long rows, const Changes* changes, int count, Ready& ready) {
    bool any = false;
    for (int i = 0; changes && i < count; ++i) {
        if (!changes[i].count) continue;
        long most = 0;
        for (long c = 0; c < changes[i].count; ++c) most = std::max(most, changes[i].list[c].by->rank);
        ready.changed[i] = {changes[i], k.low[i].of<float>(static_cast<std::size_t>(rows * most)), most};
        any = true;
    }
    return any;
}

// A x for those of rows [begin, end) that are changed.
void lower(Kernels& k, const Ready& ready, long begin, long end) {
    for (const Changed& changed : ready.changed)
        for (long c = 0; c < changed.changes.count; ++c) {
            const Change& change = changed.changes.list[c];
            const long first = std::max(begin, change.begin), last = std::min(end, change.end);
            if (first >= last) continue;
            float* low = const_cast<float*>(changed.low) + first * changed.stride;
            k.set.lowrank.down(*change.by, ready.floats + first * ready.cols, ready.cols, last - first, low,
                               changed.stride);
        }
}

// Rows a task, where some are changed: enough to share the loads of A, few enough that every thread has some.
long rows_a_task(const Kernels& k, long rows) { return std::clamp(rows / (4l * k.pool.threads()), 1l, 12l); }

}  // namespace

Ready prepare(Kernels& k, const Rows& in, bool packed, const Changes* changes, int count) {
    Ready ready{in.x, {}, in.rows, in.cols, {}};
    float* normed = in.norm ? k.normed.of<float>(static_cast<std::size_t>(in.rows * in.cols)) : nullptr;
    if (normed) ready.floats = normed;
    if (packed) ready.quantised = room_in(k.rounded[0], in.rows, in.cols);
    const bool changed = make_room(k, in.rows, changes, count, ready);
    if (!normed && !packed && !changed) return ready;
    const long each = changed ? rows_a_task(k, in.rows) : 1;
    k.pool.run((in.rows + each - 1) / each, [&](long task) {
        const long begin = task * each, end = std::min(in.rows, begin + each);
        for (long r = begin; r < end; ++r) {
            if (normed) k.set.element.norm(in.x + r * in.cols, in.norm, normed + r * in.cols, in.cols, in.eps);
            if (packed) k.set.matmul.quantize(ready.floats + r * in.cols, in.cols, ready.quantised, r, 0);
        }
        if (changed) lower(k, ready, begin, end);
    });
    return ready;
}

Ready prepare_fine(Kernels& k, const Rows& in) {
    Ready ready{in.x, room_in(k.rounded[0], 2 * in.rows, in.cols), 2 * in.rows, in.cols, {}};
    float* normed = in.norm ? k.normed.of<float>(static_cast<std::size_t>(in.rows * in.cols)) : nullptr;
    if (normed) ready.floats = normed;
    k.pool.run(in.rows, [&](long r) {
        if (normed) k.set.element.norm(in.x + r * in.cols, in.norm, normed + r * in.cols, in.cols, in.eps);
        k.set.matmul.quantize_fine(ready.floats + r * in.cols, ready.quantised, r, in.rows + r);
    });
    return ready;
}

Words prepare_words(Kernels& k, const Rows& in) {
    const auto size = static_cast<std::size_t>(in.rows * in.cols);
    Rounded& buffers = k.rounded[0];
    const Words words{in.rows, in.cols, buffers.q.of<std::int16_t>(size), buffers.scales.of<float>(size / 32)};
    float* normed = in.norm ? k.normed.of<float>(size) : nullptr;
    k.pool.run(in.rows, [&](long r) {
        const float* x = in.x + r * in.cols;
        if (normed) k.set.element.norm(x, in.norm, normed + r * in.cols, in.cols, in.eps);
        k.set.matmul.round_words(normed ? normed + r * in.cols : x, words, r);
    });
    return words;
}

namespace {

// ---- one task: some panels of one matrix, all rows ----------------------------------------------------------------

void tile_task(Kernels& k, const Job& job, const Ready& x, long panel, long panel_end, float* out, long stride) {
    const Layout& layout = job.weight->layout;
    const long width = k.set.matmul.tile_panels, height = k.set.matmul.tiled_rows;
    const long groups = layout.cols / layout.format.group;
    const long q_bytes = layout.cols * kPanel * width, scale_bytes = groups * kPanel * width * 4;
    const long tiles = (panel_end - panel + width - 1) / width;
    Lender::Loan scratch(k.scratch);
    std::uint8_t* memory = scratch->of<std::uint8_t>(static_cast<std::size_t>(tiles * (q_bytes + 2 * scale_bytes)));
    const auto tile_at = [&](long i) {
        std::uint8_t* at = memory + i * (q_bytes + 2 * scale_bytes);
        return Tile{at, reinterpret_cast<float*>(at + q_bytes), reinterpret_cast<float*>(at + q_bytes + scale_bytes),
                    width};
    };
    for (long i = 0; i < tiles; ++i) k.set.matmul.unpack(layout, job.weight->bytes, panel + i * width, tile_at(i));
    for (long row = 0; row < x.rows; row += height)
        for (long i = 0; i < tiles; ++i) {
            const long column = i * width * kPanel;
            const long end = columns_of(*job.weight, panel, panel_end);
            k.set.matmul.tiled(layout, tile_at(i), x.quantised, job.corrections, row, std::min(x.rows, row + height),
                               out + row * stride + column, stride, std::min(width * kPanel, end - column));
        }
}

}  // namespace

void add_changes(Kernels& k, const Changed& changed, long outputs, long panel, long panel_end, float* out,
                 long stride) {
    for (long c = 0; c < changed.changes.count; ++c) {
        const Change& change = changed.changes.list[c];
        k.set.lowrank.up(*change.by, changed.low + change.begin * changed.stride, changed.stride, panel, panel_end,
                         outputs, change.end - change.begin, out + change.begin * stride, stride);
    }
}

void compute(Kernels& k, const Job& job, const Ready& x, long panel, long panel_end, float* out, long stride) {
    const Weight& w = *job.weight;
    if (!w.packed) {
        const long end = std::min(panel_end * kPanel, w.layout.rows);
        k.set.matmul.dense(static_cast<int>(w.plain), w.bytes, x.floats, w.layout.cols, panel * kPanel, end, 0, x.rows,
                           out - panel * kPanel, stride);
    } else if (are_few(k, x.rows)) {
        k.set.matmul.direct(w.layout, w.bytes, job.records, x.rows, panel, panel_end, out, stride);
    } else {
        tile_task(k, job, x, panel, panel_end, out, stride);
    }
    add_changes(k, job.changed, w.layout.rows, panel, panel_end, out, stride);
}

void compute_gated(Kernels& k, const Job& gate, const Job& up, const Ready& x, long panel, long panel_end, float* out,
                   long stride) {
    const long columns = columns_of(*gate.weight, panel, panel_end);
    Lender::Loan scratch(k.scratch);
    float* opened = scratch->of<float>(static_cast<std::size_t>(x.rows * columns));
    compute(k, gate, x, panel, panel_end, opened, columns);
    compute(k, up, x, panel, panel_end, out, stride);
    for (long r = 0; r < x.rows; ++r)
        k.set.element.geglu(opened + r * columns, out + r * stride, out + r * stride, columns);
}

namespace {

// ---- planning -----------------------------------------------------------------------------------------------------

long bytes_a_panel(const Weight& w) {
    if (w.packed) return w.layout.bytes / std::max(1l, w.layout.panels);
    return w.layout.cols * kPanel * (w.plain == Plain::float32 ? 4 : 2);
}

void cut(const Kernels& k, Job& job, long rows) {
    const Weight& w = *job.weight;
    const long panels = w.layout.panels, wanted = kTasksAThread * k.pool.threads();
    long each = std::max(1l, panels / wanted);
    if (are_few(k, rows) || !w.packed) {
        each = std::max(each, kLeastBytes / std::max(1l, bytes_a_panel(w)));
    } else {
        const long width = k.set.matmul.tile_panels;
        each = std::min(each, std::max(1l, kTileBytes / (w.layout.cols * kPanel)));
        each = std::max(width, each / width * width);
    }
    job.panels_a_task = std::max(1l, each);
    job.tasks = (panels + job.panels_a_task - 1) / job.panels_a_task;
}

// What products need for each format beside the activations, in scratch memory of the call.
void add_rest(Kernels& k, Job& job, const Ready& x, Buffer& memory, Sizes sizes) {
    if (!job.weight->packed) return;
    const Layout& layout = job.weight->layout;
    const auto records = static_cast<std::size_t>(sizes.few ? x.rows * (layout.cols / kBlock) : 0);
    const auto groups = static_cast<std::size_t>(sizes.many ? x.rows * (layout.cols / layout.format.group) : 0);
    auto* bytes = memory.of<std::uint8_t>(records * sizeof(Record) + groups * 8);
    if (sizes.few) job.records = {reinterpret_cast<Record*>(bytes), x.rows};
    auto* start = reinterpret_cast<std::int32_t*>(bytes + records * sizeof(Record));
    auto* weight = reinterpret_cast<float*>(start + groups);
    if (sizes.many) job.corrections = {start, weight};
    k.pool.run((x.rows + 31) / 32, [&](long part) {
        const long begin = part * 32, end = std::min(x.rows, begin + 32);
        if (sizes.few)
            k.set.matmul.arrange(layout, x.quantised, begin, end, {job.records.at + begin, job.records.stride});
        if (sizes.many) k.set.matmul.correct(layout, x.quantised, begin, end, start, weight);
    });
}

}  // namespace

Sizes sizes_of(const Kernels& k, long rows) { return {are_few(k, rows), !are_few(k, rows)}; }

Job job_of(Kernels& k, const Weight& weight, const Ready& x, Buffer& memory, Sizes sizes) {
    Job job{&weight, {}, {}, 1, 0, {}};
    cut(k, job, x.rows);
    add_rest(k, job, x, memory, sizes);
    return job;
}

Job in_pairs(Job job) {
    job.panels_a_task += job.panels_a_task % 2;
    job.tasks = (job.weight->layout.panels + job.panels_a_task - 1) / job.panels_a_task;
    return job;
}

Ready part_of(const Ready& x, long begin, long end) {
    Ready part = x;
    part.rows = end - begin;
    part.floats += begin * x.cols;
    Activations& a = part.quantised;
    a.rows = end - begin;
    if (!a.q) return part;
    a.q += begin * a.cols, a.scale += begin * (a.cols / 32);
    a.sums16 += begin * (a.cols / 16), a.sums32 += begin * (a.cols / 32);
    return part;
}

Job part_of(const Job& job, const Ready& x, long begin) {
    Job part = job;
    if (job.records.at) part.records.at += begin;
    if (!job.corrections.start) return part;
    const long groups = x.cols / job.weight->layout.format.group;
    part.corrections.start += begin * groups, part.corrections.weight += begin * groups;
    return part;
}

}  // namespace pocketgem
