// One decoder layer over packed or plain weights, put together from the calls of linear.h and attention.h. What a layer
// is stands in pocketgem/model/gemma.py; this is the same in two calls, so that a token does not spend its time between
// kernels.
#pragma once

#include "attention.h"
#include "linear.h"

namespace pocketgem {

struct Layer {
    const Weight *q = nullptr, *k = nullptr, *v = nullptr,
                 *o = nullptr;  // no k: another layer's keys; no v: values are k
    const Weight *gate = nullptr, *up = nullptr, *down = nullptr;
    const Weight *into = nullptr, *back = nullptr;  // of the per-layer vector, where there is one
    const float *entry = nullptr, *q_norm = nullptr, *k_norm = nullptr, *after_attention = nullptr;
    const float *before_mlp = nullptr, *after_mlp = nullptr, *after_vector = nullptr;
    float eps = 0, scale = 1, factor = 1;  // of norms, of scores, of the layer's output
    long heads = 0, kv_heads = 0, dim = 0, window = 0;
    bool normed_values = false;
};

// What adapters change of a layer in one call, each matrix by itself.
struct LayerChanges {
    Changes q, k, v, o, gate, up, down, into, back;
};

// What the rows of a call have beside themselves.
struct Angles {
    const float *cos, *sin;  // [rows, dim / 2]
};

// Where the keys of a call's rows go, none where a layer reads another's, and what its queries read.
struct Past {
    const KeyTarget* targets;
    long target_count;
    Sight sight;
    const KeySpan* spans;
    long span_count;
};

// Projects the residual rows x [rows, hidden] and stores their keys and values.
void write_layer_keys(Kernels& kernels, const Layer& layer, const float* x, long rows, const Angles& angles,
                      const KeyTarget* targets, long count, const LayerChanges& changes = {});

// out = x + norm(attention(norm(x))); out may be x.
void attend_layer(Kernels& kernels, const Layer& layer, const float* x, long rows, const Angles& angles,
                  const Sight& sight, const KeySpan* spans, long count, float* out, const LayerChanges& changes = {});

// x = (x + norm(mlp(norm(x)))) * factor, in place; where the layer has a vector [rows] `stride` floats apart, it comes
// in between.
void feed_forward(Kernels& kernels, const Layer& layer, float* x, long rows, const float* vectors, long stride,
                  const LayerChanges& changes = {});

// The whole layer, in place: its keys where it has any, attention, and what feeds forward. The bits of the three above.
void run_layer(Kernels& kernels, const Layer& layer, float* x, long rows, const Angles& angles, const Past& past,
               const float* vectors, long stride, const LayerChanges& changes = {});

}  // namespace pocketgem
