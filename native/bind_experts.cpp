// Routed experts, as Python sees them: all of a layer in memory, or each wherever it is now. Addresses and sizes come
// from pocketgem/kernels, which checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <tuple>
#include <vector>

#include "bind.h"
#include "blocks.h"
#include "experts.h"
#include "owned.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

bool same_type(const Weight& a, const Weight& b) {
    return a.packed ? b.packed && a.layout.format.type == b.layout.format.type : !b.packed && a.plain == b.plain;
}

void check_shapes(const Expert& e, const Expert& first) {
    const Layout& gate = first.gate->layout;
    for (const auto& [one, rows, cols] :
         {std::tuple{e.gate, gate.rows, gate.cols}, std::tuple{e.up, gate.rows, gate.cols},
          std::tuple{e.down, gate.cols, gate.rows}})
        if (one->layout.rows != rows || one->layout.cols != cols) throw nb::value_error("Experts: shapes differ");
    if (!same_type(*e.gate, *first.gate) || !same_type(*e.up, *first.up) || !same_type(*e.down, *first.down))
        throw nb::value_error("Experts: types differ");  // one plan serves them all
}

void check_choices(const std::int64_t* chosen, long all, long count) {
    for (long i = 0; i < all; ++i)
        if (chosen[i] < 0 || chosen[i] >= count) throw nb::value_error("experts: an index is outside the stack");
}

// ---- all in memory ------------------------------------------------------------------------------------------------

struct ExpertStack {
    std::vector<Expert> experts;
    nb::list owners;
};

void make_stack(ExpertStack* self, nb::list gates, nb::list ups, nb::list downs) {
    const auto count = gates.size();
    if (count == 0 || ups.size() != count || downs.size() != count)
        throw nb::value_error("Experts: lists differ in length");
    std::vector<Expert> experts;
    const auto weight = [](nb::handle owner) { return &nb::cast<const OwnedWeight&>(owner).weight; };
    for (std::size_t i = 0; i < count; ++i) experts.push_back({weight(gates[i]), weight(ups[i]), weight(downs[i])});
    for (const Expert& e : experts) check_shapes(e, experts[0]);
    nb::list owners;
    owners.append(gates), owners.append(ups), owners.append(downs);
    new (self) ExpertStack{std::move(experts), std::move(owners)};
}

void experts_run(Kernels& k, Address x, long rows, const ExpertStack& stack, Address chosen_experts, Address shares,
                 long chosen, Address out) {
    const auto count = static_cast<long>(stack.experts.size());
    const auto* ids = at<const std::int64_t>(chosen_experts);
    check_choices(ids, rows * chosen, count);
    nb::gil_scoped_release unlocked;
    run_experts(k, at<const float>(x), rows, stack.experts.data(), count, {ids, at<const float>(shares), chosen},
                at<float>(out));
}

// ---- each wherever it is now --------------------------------------------------------------------------------------

// What all experts of a layer look like; their bytes are said with each call.
struct ExpertShape {
    Weight gate, up, down;
    long count;
};

Weight packed_weight(const std::string& type, long rows, long cols) {
    const Format* format = find_format(type);
    if (!format || rows < 1 || cols < 1 || cols % block_size(*format))
        throw nb::value_error("ExpertShape: no packed matrix looks like this");
    Weight weight;
    weight.packed = true;
    weight.layout = layout_of(*format, rows, cols);
    return weight;
}

void make_shape(ExpertShape* self, const std::string& gate, const std::string& up, const std::string& down, long width,
                long hidden, long count) {
    if (count < 1) throw nb::value_error("ExpertShape: a layer has experts");
    new (self) ExpertShape{packed_weight(gate, width, hidden), packed_weight(up, width, hidden),
                           packed_weight(down, hidden, width), count};
}

// addresses [count, 3]: gate, up and down of each expert; 0: not in memory.
void experts_present(Kernels& k, Address x, long rows, const ExpertShape& shape, Address addresses,
                     Address chosen_experts, long chosen, Address products) {
    const auto* ids = at<const std::int64_t>(chosen_experts);
    check_choices(ids, rows * chosen, shape.count);
    nb::gil_scoped_release unlocked;
    const auto* places = at<const std::int64_t>(addresses);
    std::vector<Weight> weights;
    weights.reserve(static_cast<std::size_t>(3 * shape.count));
    std::vector<Expert> experts(static_cast<std::size_t>(shape.count), Expert{nullptr, nullptr, nullptr});
    for (long e = 0; e < shape.count; ++e, places += 3) {
        if (!places[0] || !places[1] || !places[2]) continue;
        for (int part = 0; part < 3; ++part) {
            weights.push_back(part == 0 ? shape.gate : part == 1 ? shape.up : shape.down);
            weights.back().bytes = at<const std::uint8_t>(static_cast<Address>(places[part]));
        }
        const Weight* last = &weights.back();
        experts[static_cast<std::size_t>(e)] = {last - 2, last - 1, last};
    }
    run_present(k, at<const float>(x), rows, experts.data(), shape.count, {ids, nullptr, chosen}, at<float>(products));
}

void experts_mix(Kernels& k, Address products, long rows, long hidden, Address shares, long chosen, Address out) {
    nb::gil_scoped_release unlocked;
    mix_products(k, at<const float>(products), rows, hidden, {nullptr, at<const float>(shares), chosen},
                 at<float>(out));
}

}  // namespace

void bind_experts(nb::module_& module) {
    nb::class_<ExpertStack>(module, "Experts",
                            "The routed experts of one layer: gates, ups and downs of one shape each.")
        .def("__init__", &make_stack, nb::arg("gates"), nb::arg("ups"), nb::arg("downs"))
        .def_prop_ro("cols", [](const ExpertStack& stack) { return stack.experts[0].gate->layout.cols; });
    nb::class_<ExpertShape>(module, "ExpertShape",
                            "Types and shapes of one layer's routed experts, whose bytes come and go.")
        .def("__init__", &make_shape, nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("width"),
             nb::arg("hidden"), nb::arg("count"))
        .def_prop_ro("count", [](const ExpertShape& shape) { return shape.count; })
        .def_prop_ro("cols", [](const ExpertShape& shape) { return shape.gate.layout.cols; });
    module.def("experts", &experts_run);
    module.def("experts_present", &experts_present);
    module.def("experts_mix", &experts_mix);
}

}  // namespace pocketgem
