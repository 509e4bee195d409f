// Decoder layers, as Python sees them. Addresses and sizes come from pocketgem/kernels, which checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <deque>
#include <unordered_map>

#include "bind.h"
#include "kernel_set.h"
#include "layer.h"
#include "spans.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

// A part of a layer that an adapter may change: its name, its matrix and its place among the changes of a call.
struct Part {
    const char* name;
    const Weight* Layer::* weight;
    Changes LayerChanges::* changes;
};

constexpr int kParts = 9;
constexpr Part kPart[kParts] = {
    {"q", &Layer::q, &LayerChanges::q},          {"k", &Layer::k, &LayerChanges::k},
    {"v", &Layer::v, &LayerChanges::v},          {"o", &Layer::o, &LayerChanges::o},
    {"gate", &Layer::gate, &LayerChanges::gate}, {"up", &Layer::up, &LayerChanges::up},
    {"down", &Layer::down, &LayerChanges::down}, {"into", &Layer::into, &LayerChanges::into},
    {"back", &Layer::back, &LayerChanges::back}};

// What one adapter changes of a layer; no rank: nothing of that part.
struct Adapter {
    LowRank parts[kParts];
    nb::dict owners;
};

// A layer with the adapters that know it, and the Python objects whose memory they read.
struct OwnedLayer {
    Layer layer;
    nb::dict owners;
    std::unordered_map<long, Adapter> adapters;
};

using Segment = std::tuple<long, long, long>;  // start, stop, whose the rows are

// The changes of one call.
class CallChanges {
public:
    CallChanges(const OwnedLayer& owned, const std::vector<Segment>& segments, long rows) {
        for (const auto& [start, stop, who] : segments) {
            if (start < 0 || stop < start || stop > rows) throw nb::value_error("layer: changes are outside the rows");
            const auto found = owned.adapters.find(who);
            if (found == owned.adapters.end()) continue;  // it changes other layers
            for (int i = 0; i < kParts; ++i)
                if (const LowRank& change = found->second.parts[i]; change.rank)
                    lists_[i].push_back({start, stop, &change});
        }
        for (int i = 0; i < kParts; ++i) all_.*kPart[i].changes = view_of(lists_[i]);
    }
    CallChanges(const CallChanges&) = delete;
    CallChanges& operator=(const CallChanges&) = delete;
    const LayerChanges& all() const { return all_; }

private:
    std::vector<Change> lists_[kParts];
    LayerChanges all_;
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
    new (self) OwnedLayer{l, std::move(parts), {}};
}

// parts: LowRank by name. What was known under this number before is forgotten.
void put_adapter(OwnedLayer& owned, long who, nb::dict parts) {
    Adapter adapter;
    std::size_t known = 0;
    for (int i = 0; i < kParts; ++i) {
        if (!parts.contains(kPart[i].name)) continue;
        const auto& change = nb::cast<const OwnedLowRank&>(parts[kPart[i].name]);
        const Weight* weight = owned.layer.*kPart[i].weight;
        if (!weight || weight->layout.rows != change.rows || weight->layout.cols != change.cols)
            throw nb::value_error("Layer: a change does not fit its matrix");
        adapter.parts[i] = change.change;
        ++known;
    }
    if (known != parts.size()) throw nb::value_error("Layer: a change of a part that it does not have");
    adapter.owners = std::move(parts);
    owned.adapters.insert_or_assign(who, std::move(adapter));
}

void keys(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin,
          const std::vector<WriteSpan>& spans, const std::vector<Segment>& segments) {
    if (!owned.layer.k) throw nb::value_error("layer_keys: this layer reads another's keys");
    const std::vector<KeyTarget> targets = targets_of(spans, rows);
    const CallChanges changes(owned, segments, rows);
    nb::gil_scoped_release unlocked;
    write_layer_keys(k, owned.layer, at<const float>(x), rows, {at<const float>(cos), at<const float>(sin)},
                     targets.data(), static_cast<long>(targets.size()), changes.all());
}

void attend(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin, Address positions,
            Address last, const std::vector<ReadSpan>& spans, const LayerChanges& changes, Address out) {
    const std::vector<KeySpan> seen = spans_of(spans, rows);
    nb::gil_scoped_release unlocked;
    attend_layer(k, owned.layer, at<const float>(x), rows, {at<const float>(cos), at<const float>(sin)},
                 {at<const std::int64_t>(positions), at<const std::int64_t>(last)}, seen.data(),
                 static_cast<long>(seen.size()), at<float>(out), changes);
}

void attention(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin, Address positions,
               Address last, const std::vector<ReadSpan>& spans, Address out, const std::vector<Segment>& segments) {
    const CallChanges changes(owned, segments, rows);
    attend(k, owned, x, rows, cos, sin, positions, last, spans, changes.all(), out);
}

void whole(Kernels& k, const OwnedLayer& owned, Address x, long rows, Address cos, Address sin, Address positions,
           Address last, const std::vector<ReadSpan>& spans, Address vectors, long stride, Address out,
           const std::vector<Segment>& segments) {
    if (owned.layer.into && !vectors) throw nb::value_error("layer: this layer takes a vector for each row");
    const CallChanges changes(owned, segments, rows);
    attend(k, owned, x, rows, cos, sin, positions, last, spans, changes.all(), out);
    nb::gil_scoped_release unlocked;
    feed_forward(k, owned.layer, at<float>(out), rows, at<const float>(vectors), stride, changes.all());
}

// ---- layers one after another -------------------------------------------------------------------------------------

// One of them: the layer, which of the call's angles turn its heads, and which of the layers that write keeps its keys.
struct Storey {
    nb::object owner;
    const OwnedLayer* owned;
    std::size_t angles, keys;
};

struct Stack {
    std::vector<Storey> storeys;
    std::size_t angles = 0, writers = 0;
};

// layers: (Layer, angles, keys) from the first to the last.
void make_stack(Stack* self, const std::vector<std::tuple<nb::object, std::size_t, std::size_t>>& layers) {
    Stack stack;
    for (const auto& [owner, angles, keys] : layers) {
        const auto& owned = nb::cast<const OwnedLayer&>(owner);
        if (owned.layer.k && keys != stack.writers) throw nb::value_error("Stack: writers are counted in their order");
        stack.writers += owned.layer.k != nullptr;
        if (keys >= stack.writers) throw nb::value_error("Stack: a layer reads keys that no earlier one writes");
        stack.angles = std::max(stack.angles, angles + 1);
        stack.storeys.push_back({owner, &owned, angles, keys});
    }
    new (self) Stack(std::move(stack));
}

// x [rows, hidden] becomes what the last layer makes of it. angles: (cos, sin). spans: [spans, 2], from and up to which
// rows are a sequence's. places: [writers, spans, 6], see Place. vectors: [rows, layers, dim], rows `stride` and layers
// `step` floats apart, or no address.
void run_stack(Kernels& k, const Stack& stack, Address x, long rows,
               const std::vector<std::tuple<Address, Address>>& angles, Address positions, Address spans, long count,
               Address places, std::size_t writers, Address vectors, long stride, long step,
               const std::vector<Segment>& segments) {
    if (angles.size() != stack.angles || writers != stack.writers)
        throw nb::value_error("layers: angles and keys do not fit these layers");
    std::vector<std::vector<KeyTarget>> writes;
    std::vector<std::vector<KeySpan>> reads;
    for (std::size_t i = 0; i < writers; ++i) {
        const Place* own = at<const Place>(places) + static_cast<long>(i) * count;
        writes.push_back(targets_of(at<const RowSpan>(spans), own, count, rows));
        reads.push_back(spans_of(at<const RowSpan>(spans), own, count));
    }
    std::deque<CallChanges> changes;
    for (const Storey& one : stack.storeys) {
        if (one.owned->layer.into && !vectors) throw nb::value_error("layers: these take a vector for each row");
        changes.emplace_back(*one.owned, segments, rows);
    }
    nb::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < stack.storeys.size(); ++i) {
        const Storey& one = stack.storeys[i];
        const auto& [cos, sin] = angles[one.angles];
        const auto& write = writes[one.keys];
        const auto& read = reads[one.keys];
        const Past past{write.data(),
                        static_cast<long>(write.size()),
                        {at<const std::int64_t>(positions), nullptr},
                        read.data(),
                        static_cast<long>(read.size())};
        const float* own = vectors ? at<const float>(vectors) + static_cast<long>(i) * step : nullptr;
        run_layer(k, one.owned->layer, at<float>(x), rows, {at<const float>(cos), at<const float>(sin)}, past, own,
                  stride, changes[i].all());
    }
}

}  // namespace

void bind_layer(nb::module_& module) {
    nb::class_<OwnedLayer>(module, "Layer", "One decoder layer's matrices, norms and numbers.")
        .def("__init__", &make_layer, nb::arg("parts"), nb::arg("norms"), nb::arg("numbers"))
        .def("put", &put_adapter, nb::arg("who"), nb::arg("parts"))
        .def("drop", [](OwnedLayer& owned, long who) { owned.adapters.erase(who); }, nb::arg("who"));
    module.def("layer_keys", &keys);
    module.def("layer_attention", &attention);
    module.def("layer", &whole);
    nb::class_<Stack>(module, "Stack", "Decoder layers that run one after another.")
        .def("__init__", &make_stack, nb::arg("layers"));
    module.def("layers", &run_stack);
}

}  // namespace pocketgem
