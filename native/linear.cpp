#include "linear.h"

#include <algorithm>

#include "product.h"

namespace pocketgem {
namespace {

// Runs body(panel, panel_end) over all panels of a job.
template <typename Body>
void over_panels(Kernels& k, const Job& job, const Body& body) {
    k.pool.run(job.tasks, [&](long task) {
        const long panel = task * job.panels_a_task;
        body(panel, last_panel(job, panel));
    });
}

// A matrix of the call with what changes its products.
Job job_at(Kernels& k, const Weight& weight, const Ready& x, int i) {
    Job job = job_of(k, weight, x, k.corrections[i]);
    job.changed = x.changed[i];
    return job;
}

// (residual + rms_norm(x @ job's weight.T) * post_norm) * factor
void add_ready(Kernels& k, const Ready& x, const Job& job, const float* post_norm, float eps, float factor,
               const float* residual, float* out) {
    const long width = job.weight->layout.rows;
    float* product = k.product.of<float>(static_cast<std::size_t>(x.rows * width));
    over_panels(k, job, [&](long panel, long end) { compute(k, job, x, panel, end, product + panel * kPanel, width); });
    k.pool.run(x.rows, [&](long r) {
        if (out != residual) std::copy_n(residual + r * width, width, out + r * width);
        k.set.element.add_norm(out + r * width, product + r * width, post_norm, width, eps, factor);
    });
}

// gelu(norm(x) @ gate.T) * (norm(x) @ up.T), rounded in the tasks that make it.
Ready geglu_rounded(Kernels& k, const Rows& in, const Weight& gate, const Weight& up, const Changes* changes) {
    const long width = gate.layout.rows;
    const Ready x = prepare(k, in, gate.packed || up.packed, changes, 2);
    const Ready inner{nullptr, room_in(k.rounded[1], in.rows, width), in.rows, width, {}};
    const Job gates = in_pairs(job_at(k, gate, x, 0)), ups = job_at(k, up, x, 1);
    over_panels(k, gates, [&](long panel, long end) {
        const long columns = columns_of(gate, panel, end);
        Lender::Loan scratch(k.scratch);
        float* made = scratch->of<float>(static_cast<std::size_t>(x.rows * columns));
        compute_gated(k, gates, ups, x, panel, end, made, columns);
        for (long r = 0; r < x.rows; ++r)
            k.set.matmul.quantize(made + r * columns, columns, inner.quantised, r, panel * kPanel);
    });
    return inner;
}

// fine_linear where the set has products of 16 bits.
void linear_in_words(Kernels& k, const Rows& in, const Weight& weight, float* out) {
    const Words x = prepare_words(k, in);
    const Job job = job_of(k, weight, {nullptr, {}, in.rows, in.cols, {}}, k.corrections[0], {false, false});
    over_panels(k, job, [&](long panel, long end) {
        k.set.matmul.words(weight.layout, weight.bytes, x, panel, end, out + panel * kPanel, weight.layout.rows);
    });
}

}  // namespace

void linear(Kernels& k, const Rows& in, const Weight* const* weights, float* const* outs, int count,
            const Changes* changes) {
    const bool packed = std::any_of(weights, weights + count, [](const Weight* w) { return w->packed; });
    const Ready x = prepare(k, in, packed, changes, count);
    Job jobs[kMostWeights];
    long tasks = 0;
    for (int i = 0; i < count; ++i) {
        jobs[i] = job_at(k, *weights[i], x, i);
        tasks += jobs[i].tasks;
    }
    k.pool.run(tasks, [&](long task) {
        int i = 0;
        while (task >= jobs[i].tasks) task -= jobs[i++].tasks;
        const long panel = task * jobs[i].panels_a_task;
        compute(k, jobs[i], x, panel, last_panel(jobs[i], panel), outs[i] + panel * kPanel, weights[i]->layout.rows);
    });
}

void fine_linear(Kernels& k, const Rows& in, const Weight& weight, float* out) {
    if (!weight.packed) {
        const Weight* weights[] = {&weight};
        return linear(k, in, weights, &out, 1);
    }
    if (k.set.matmul.words && weight.layout.format.bits == 8) return linear_in_words(k, in, weight, out);
    const Ready x = prepare_fine(k, in);
    const Job job = job_of(k, weight, x, k.corrections[0]);
    over_panels(k, job, [&](long panel, long end) {
        const long columns = columns_of(weight, panel, end), stride = weight.layout.rows;
        Lender::Loan scratch(k.scratch);
        float* both = scratch->of<float>(static_cast<std::size_t>(x.rows * columns));
        compute(k, job, x, panel, end, both, columns);
        for (long r = 0; r < in.rows; ++r) {
            float* to = out + r * stride + panel * kPanel;
            std::copy_n(both + r * columns, columns, to);
            k.set.element.add(to, both + (in.rows + r) * columns, columns);
        }
    });
}

void geglu_linear(Kernels& k, const Rows& in, const Weight& gate, const Weight& up, float* out,
                  const Changes* changes) {
    const Ready x = prepare(k, in, gate.packed || up.packed, changes, 2);
    const Job gates = job_at(k, gate, x, 0), ups = job_at(k, up, x, 1);
    over_panels(k, gates, [&](long panel, long end) {
        compute_gated(k, gates, ups, x, panel, end, out + panel * kPanel, gate.layout.rows);
    });
}

void gated_linear(Kernels& k, const Rows& in, const Weight& weight, const float* vectors, long vector_stride,
                  float* out, const Changes* changes) {
    const Ready x = prepare(k, in, weight.packed, changes, 1);
    const Job job = job_at(k, weight, x, 0);
    over_panels(k, job, [&](long panel, long end) {
        const long column = panel * kPanel, stride = weight.layout.rows;
        compute(k, job, x, panel, end, out + column, stride);
        for (long r = 0; r < x.rows; ++r) {
            float* to = out + r * stride + column;
            k.set.element.geglu(to, vectors + r * vector_stride + column, to, columns_of(weight, panel, end));
        }
    });
}

void add_linear(Kernels& k, const Rows& in, const Weight& weight, const float* post_norm, float eps, float factor,
                const float* residual, float* out, const Changes* changes) {
    const Ready x = prepare(k, in, weight.packed, changes, 1);
    add_ready(k, x, job_at(k, weight, x, 0), post_norm, eps, factor, residual, out);
}

void mlp(Kernels& k, const Rows& in, const Mlp& w, const float* post_norm, float eps, float factor,
         const float* residual, float* out, const Changes* changes) {
    const bool rounds = w.down->packed && !are_few(k, in.rows) && !changes[2].count;
    if (rounds) {
        const Ready inner = geglu_rounded(k, in, *w.gate, *w.up, changes);
        return add_ready(k, inner, job_of(k, *w.down, inner, k.corrections[2]), post_norm, eps, factor, residual, out);
    }
    const long width = w.gate->layout.rows;
    float* inner = k.layer[0].of<float>(static_cast<std::size_t>(in.rows * width));
    geglu_linear(k, in, *w.gate, *w.up, inner, changes);
    add_linear(k, {inner, in.rows, width, nullptr, 0}, *w.down, post_norm, eps, factor, residual, out, changes + 2);
}

void change_rows(Kernels& k, const Rows& in, long outputs, float* out, const Changes& changes) {
    const Ready x = prepare(k, in, false, &changes, 1);
    const long panels = (outputs + kPanel - 1) / kPanel, each = std::max(1l, panels / (4 * k.pool.threads()));
    k.pool.run((panels + each - 1) / each, [&](long task) {
        const long panel = task * each;
        add_changes(k, x.changed[0], outputs, panel, std::min(panels, panel + each), out + panel * kPanel, outputs);
    });
}

}  // namespace pocketgem
