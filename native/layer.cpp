#include "layer.h"

#include "kernel_set.h"

namespace pocketgem {
namespace {

float* rows_in(Buffer& buffer, long rows, long width) {
    return buffer.of<float>(static_cast<std::size_t>(rows * width));
}

// What follows the projection of the queries q.
void attend_with(Kernels& k, const Layer& l, const float* q, const float* x, long rows, const Angles& angles,
                 const Sight& sight, const KeySpan* spans, long count, float* out, const LayerChanges& c) {
    const long width = l.q->layout.rows;
    float* seen = rows_in(k.layer[1], rows, width);
    attend(k, {q, l.q_norm, l.eps, angles.cos, angles.sin, sight, l.heads, l.kv_heads, l.dim, l.window, l.scale, seen},
           spans, count);
    add_linear(k, {seen, rows, width, nullptr, 0}, *l.o, l.after_attention, l.eps, 1.0f, x, out, &c.o);
}

}  // namespace

void write_layer_keys(Kernels& k, const Layer& l, const float* x, long rows, const Angles& angles,
                      const KeyTarget* targets, long count, const LayerChanges& c) {
    const long width = l.k->layout.rows;
    float* keys = rows_in(k.layer[0], rows, width);
    float* values = l.v ? rows_in(k.layer[1], rows, width) : keys;
    const Weight* weights[] = {l.k, l.v};
    float* outs[] = {keys, values};
    const Changes changes[] = {c.k, c.v};
    linear(k, {x, rows, l.k->layout.cols, l.entry, l.eps}, weights, outs, l.v ? 2 : 1, changes);
    write_keys(k, {keys, values, l.k_norm, l.eps, l.normed_values, angles.cos, angles.sin, l.kv_heads, l.dim}, targets,
               count);
}

void attend_layer(Kernels& k, const Layer& l, const float* x, long rows, const Angles& angles, const Sight& sight,
                  const KeySpan* spans, long count, float* out, const LayerChanges& c) {
    float* q = rows_in(k.layer[0], rows, l.q->layout.rows);
    linear(k, {x, rows, l.q->layout.cols, l.entry, l.eps}, &l.q, &q, 1, &c.q);
    attend_with(k, l, q, x, rows, angles, sight, spans, count, out, c);
}

void feed_forward(Kernels& k, const Layer& l, float* x, long rows, const float* vectors, long stride,
                  const LayerChanges& c) {
    const long hidden = l.gate->layout.cols;
    const Changes changes[] = {c.gate, c.up, c.down};
    mlp(k, {x, rows, hidden, l.before_mlp, l.eps}, {l.gate, l.up, l.down}, l.after_mlp, l.eps, l.into ? 1.0f : l.factor,
        x, x, changes);
    if (!l.into) return;
    float* gated = rows_in(k.layer[0], rows, l.into->layout.rows);
    gated_linear(k, {x, rows, hidden, nullptr, 0}, *l.into, vectors, stride, gated, &c.into);
    add_linear(k, {gated, rows, l.into->layout.rows, nullptr, 0}, *l.back, l.after_vector, l.eps, l.factor, x, x,
               &c.back);
}

void run_layer(Kernels& k, const Layer& l, float* x, long rows, const Angles& angles, const Past& past,
               const float* vectors, long stride, const LayerChanges& c) {
    float* q = rows_in(k.layer[0], rows, l.q->layout.rows);
    float *keys = nullptr, *values = nullptr;
    if (l.k) {
        keys = rows_in(k.layer[1], rows, l.k->layout.rows);
        values = l.v ? rows_in(k.layer[2], rows, l.k->layout.rows) : keys;
    }
    const Weight* weights[] = {l.q, l.k, l.v};
    float* outs[] = {q, keys, values};
    const Changes changes[] = {c.q, c.k, c.v};
    linear(k, {x, rows, l.q->layout.cols, l.entry, l.eps}, weights, outs, !l.k ? 1 : l.v ? 3 : 2, changes);
    if (l.k)
        write_keys(k, {keys, values, l.k_norm, l.eps, l.normed_values, angles.cos, angles.sin, l.kv_heads, l.dim},
                   past.targets, past.target_count);
    attend_with(k, l, q, x, rows, angles, past.sight, past.spans, past.span_count, x, c);
    feed_forward(k, l, x, rows, vectors, stride, c);
}

}  // namespace pocketgem
