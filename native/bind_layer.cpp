// Decoder layers, as Python sees them. Addresses and sizes come from pocketgem/kernels, which checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind.h"
#include "kernel_set.h"
#include "layer.h"
#include "spans.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

// A layer, and the Python objects whose memory it reads.
struct OwnedLayer {
    Layer layer;
    nb::dict owners;
};

const Weight* matrix(const nb::dict& parts, const char* name) {
    if (!parts.contains(name)) return nullptr;
    return &nb::cast<const OwnedWeight&>(parts[name]).weight;
}

void check_shapes(const Layer& l) {
    const auto fits = [](const Weight* w, long rows, long cols) {
        return !w || (w->layout.rows == rows && w->layout.cols == cols);
    };
    const bool complete = l.q && l.o && l.gate && l.up && l.down && (!l.into == !l.back);
    if (!complete) throw nb::value_error("Layer: a matrix is missing");
    const long hidden = l.q->layout.cols, all = l.heads * l.dim, kv = l.kv_heads * l.dim, width = l.gate->layout.rows;
    if (l.dim < 32 || l.dim % 32 || l.kv_heads < 1 || l.heads % l.kv_heads)
        throw nb::value_error("Layer: heads must be multiples of 32 wide, and query heads a multiple of key heads");
    if (!(fits(l.q, all, hidden) && fits(l.k, kv, hidden) && fits(l.v, kv, hidden) && fits(l.o, hidden, all) &&
          fits(l.gate, width, hidden) && fits(l.up, width, hidden) && fits(l.down, hidden, width)))
        throw nb::value_error("Layer: the matrices do not fit each other");
    if (l.into && !(fits(l.into, l.into->layout.rows, hidden) && fits(l.back, hidden, l.into->layout.rows)))
        throw nb::value_error("Layer: the vector's matrices do not fit");
}

// parts: matrices by name. norms: addresses of float32 vectors by name. numbers, heads: see Layer.
void make_layer(OwnedLayer* self, nb::dict parts, nb::dict norms, nb::dict numbers) {
    Layer l;
    l.q = matrix(parts, "q"), l.k = matrix(parts, "k"), l.v = matrix(parts, "v"), l.o = matrix(parts, "o");
    l.gate = matrix(parts, "gate"), l.up = matrix(parts, "up"), l.down = matrix(parts, "down");
    l.into = matrix(parts, "into"), l.back = matrix(parts, "back");
    const auto norm = [&](const char* name) {
        return norms.contains(name) ? at<const float>(nb::cast<Address>(norms[name])) : nullptr;
    };
    l.entry = norm("entry"), l.q_norm = norm("q_norm"), l.k_norm = norm("k_norm");
    l.after_attention = norm("after_attention"), l.before_mlp = norm("before_mlp"), l.after_mlp = norm("after_mlp");
    l.after_vector = norm("after_vector");
    l.eps = nb::cast<float>(numbers["eps"]), l.scale = nb::cast<float>(numbers["scale"]);
    l.factor = nb::cast<float>(numbers["factor"]);
    l.heads = nb::cast<long>(numbers["heads"]), l.kv_heads = nb::cast<long>(numbers["kv_heads"]);
    l.dim = nb::cast<long>(numbers["dim"]), l.window = nb::cast<long>(numbers["window"]);
    l.normed_values = nb::cast<bool>(numbers["normed_values"]);
    check_shapes(l);
    new (self) OwnedLayer{l, std::move(parts)};
}

void keys(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin,
          const std::vector<WriteSpan>& spans) {
    if (!owned.layer.k) throw nb::value_error("layer_keys: this layer reads another's keys");
    const std::vector<KeyTarget> targets = targets_of(spans, rows);
    nb::gil_scoped_release unlocked;
    write_layer_keys(k, owned.layer, at<const float>(x), rows, {at<const float>(cos), at<const float>(sin)},
                     targets.data(), static_cast<long>(targets.size()));
}

void attention(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin, Address positions,
               Address last, const std::vector<ReadSpan>& spans, Address out) {
    const std::vector<KeySpan> seen = spans_of(spans, rows);
    nb::gil_scoped_release unlocked;
    attend_layer(k, owned.layer, at<const float>(x), rows, {at<const float>(cos), at<const float>(sin)},
                 {at<const std::int64_t>(positions), at<const std::int64_t>(last)}, seen.data(),
                 static_cast<long>(seen.size()), at<float>(out));
}

void whole(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin, Address positions,
           Address last, const std::vector<ReadSpan>& spans, Address vectors, long stride, Address out) {
    if (owned.layer.into && !vectors) throw nb::value_error("layer: this layer takes a vector for each row");
    attention(k, owned, x, rows, cos, sin, positions, last, spans, out);
    nb::gil_scoped_release unlocked;
    feed_forward(k, owned.layer, at<float>(out), rows, at<const float>(vectors), stride);
}

}  // namespace

void bind_layer(nb::module_& module) {
    nb::class_<OwnedLayer>(module, "Layer", "One decoder layer's matrices, norms and numbers.")
        .def("__init__", &make_layer, nb::arg("parts"), nb::arg("norms"), nb::arg("numbers"));
    module.def("layer_keys", &keys);
    module.def("layer_attention", &attention);
    module.def("layer", &whole);
}

}  // namespace pocketgem
