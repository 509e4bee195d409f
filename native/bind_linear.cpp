// Kernels, weights and products, as Python sees them. Addresses and sizes come from pocketgem/kernels, which checked
// them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>

#include "bind.h"
#include "blocks.h"
#include "linear.h"
#include "owned.h"
#include "trial.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

const KernelSet& set_named(const std::string& name) {
    for (auto set = kernel_sets(); *set; ++set)
        if (name == (*set)->name) return **set;
    throw nb::value_error("no such kernel set in this build");
}

std::vector<std::string> built_sets() {
    std::vector<std::string> names;
    for (auto set = kernel_sets(); *set; ++set) names.emplace_back((*set)->name);
    return names;
}

void make_weight(OwnedWeight* self, const std::string& type, long rows, long cols, Address address, std::size_t size,
                 nb::object owner) {
    if (rows < 1 || cols < 1) throw nb::value_error("Weight: a matrix has rows and columns");
    Weight weight;
    weight.bytes = at<const std::uint8_t>(address);
    std::size_t needed = 0;
    if (const Format* format = find_format(type)) {
        if (cols % block_size(*format)) throw nb::value_error("Weight: columns do not fit the type's blocks");
        weight.packed = true;
        weight.layout = layout_of(*format, rows, cols);
        needed = static_cast<std::size_t>(weight.layout.bytes);
    } else if (type == "F32" || type == "BF16" || type == "F16") {
        weight.plain = type == "F32" ? Plain::float32 : type == "BF16" ? Plain::bfloat16 : Plain::float16;
        weight.layout.rows = rows, weight.layout.cols = cols, weight.layout.panels = (rows + kPanel - 1) / kPanel;
        needed = static_cast<std::size_t>(rows * cols) * (type == "F32" ? 4 : 2);
    } else {
        throw nb::value_error("Weight: no kernel for this type");
    }
    if (size != needed) throw nb::value_error("Weight: the bytes do not fit the shape");
    new (self) OwnedWeight{weight, std::move(owner)};
}

// a, b: addresses of float16 numbers as lowrank.h has them.
void make_low_rank(OwnedLowRank* self, long rank, long rows, long cols, Address a, Address b, float scale,
                   nb::object owner) {
    if (rank < 1 || rank % kRanks || rows < 1 || cols < 1) throw nb::value_error("LowRank: no change looks like this");
    new (self) OwnedLowRank{
        {at<const std::uint16_t>(a), at<const std::uint16_t>(b), rank, scale}, rows, cols, std::move(owner)};
}

Rows rows_of(Address x, long rows, const OwnedWeight& weight, Address norm, float eps) {
    return {at<const float>(x), rows, weight.weight.layout.cols, at<const float>(norm), eps};
}

void linear_one(Kernels& k, Address x, long rows, Address norm, float eps, const OwnedWeight& weight, Address out,
                const std::vector<RowChange>& given) {
    const std::vector<Change> changes = changes_of(given, rows, weight.weight.layout.rows, weight.weight.layout.cols);
    nb::gil_scoped_release unlocked;
    const Weight* weights[] = {&weight.weight};
    float* outs[] = {at<float>(out)};
    const Changes all = view_of(changes);
    linear(k, rows_of(x, rows, weight, norm, eps), weights, outs, 1, &all);
}

void fine_one(Kernels& k, Address x, long rows, Address norm, float eps, const OwnedWeight& weight, Address out) {
    nb::gil_scoped_release unlocked;
    fine_linear(k, rows_of(x, rows, weight, norm, eps), weight.weight, at<float>(out));
}

void linear_many(Kernels& k, Address x, long rows, Address norm, float eps, nb::list owners,
                 std::vector<Address> outs) {
    const Weight* weights[kMostWeights];
    float* targets[kMostWeights];
    const auto count = owners.size();
    if (count < 1 || count > kMostWeights || outs.size() != count) throw nb::value_error("linear: 1 to 3 weights");
    for (std::size_t i = 0; i < count; ++i) {
        weights[i] = &nb::cast<const OwnedWeight&>(owners[i]).weight;
        targets[i] = at<float>(outs[i]);
        if (weights[i]->layout.cols != weights[0]->layout.cols)
            throw nb::value_error("linear: weights differ in columns");
    }
    nb::gil_scoped_release unlocked;
    linear(k, {at<const float>(x), rows, weights[0]->layout.cols, at<const float>(norm), eps}, weights, targets,
           static_cast<int>(count));
}

void geglu_one(Kernels& k, Address x, long rows, Address norm, float eps, const OwnedWeight& gate,
               const OwnedWeight& up, Address out, const std::vector<RowChange>& of_gate,
               const std::vector<RowChange>& of_up) {
    if (gate.weight.layout.rows != up.weight.layout.rows || gate.weight.layout.cols != up.weight.layout.cols)
        throw nb::value_error("geglu_linear: gate and up differ in shape");
    const long width = gate.weight.layout.rows, cols = gate.weight.layout.cols;
    const std::vector<Change> opened = changes_of(of_gate, rows, width, cols);
    const std::vector<Change> raised = changes_of(of_up, rows, width, cols);
    nb::gil_scoped_release unlocked;
    const Changes both[] = {view_of(opened), view_of(raised)};
    geglu_linear(k, rows_of(x, rows, gate, norm, eps), gate.weight, up.weight, at<float>(out), both);
}

void gated_one(Kernels& k, Address x, long rows, const OwnedWeight& weight, Address vectors, long stride, Address out) {
    nb::gil_scoped_release unlocked;
    gated_linear(k, rows_of(x, rows, weight, 0, 0), weight.weight, at<const float>(vectors), stride, at<float>(out));
}

void add_one(Kernels& k, Address x, long rows, const OwnedWeight& weight, Address post_norm, float eps, float factor,
             Address residual, Address out) {
    nb::gil_scoped_release unlocked;
    add_linear(k, rows_of(x, rows, weight, 0, 0), weight.weight, at<const float>(post_norm), eps, factor,
               at<const float>(residual), at<float>(out));
}

void change_one(Kernels& k, Address x, long rows, long cols, long outputs, Address out,
                const std::vector<RowChange>& given) {
    const std::vector<Change> changes = changes_of(given, rows, outputs, cols);
    nb::gil_scoped_release unlocked;
    change_rows(k, {at<const float>(x), rows, cols, nullptr, 0}, outputs, at<float>(out), view_of(changes));
}

}  // namespace

void bind_linear(nb::module_& module) {
    module.def("built_sets", &built_sets, "Names of the kernel sets in this build, best first.");
    module.def(
        "fault_of", [](const std::string& set) { return fault_of(set_named(set)); }, nb::arg("set"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Why a set cannot be used though the processor has what it needs; empty where it can. Tries it.");
    nb::class_<Pool>(module, "Pool").def(nb::init<int>(), nb::arg("threads"));
    nb::class_<Kernels>(module, "Kernels", "The kernels of one instruction set with their threads and scratch memory.")
        .def(
            "__init__",
            [](Kernels* self, const std::string& set, int threads) { new (self) Kernels(set_named(set), threads); },
            nb::arg("set"), nb::arg("threads"))
        .def_prop_ro("name", [](const Kernels& k) { return std::string(k.set.name); })
        .def_prop_ro("threads", [](const Kernels& k) { return k.pool.threads(); })
        .def_prop_ro("pool", [](Kernels& k) -> Pool& { return k.pool; }, nb::rv_policy::reference_internal);
    nb::class_<OwnedWeight>(module, "Weight", "A matrix as the kernels read it; keeps the memory's owner alive.")
        .def("__init__", &make_weight, nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("address"),
             nb::arg("size"), nb::arg("owner"))
        .def_prop_ro("rows", [](const OwnedWeight& w) { return w.weight.layout.rows; })
        .def_prop_ro("cols", [](const OwnedWeight& w) { return w.weight.layout.cols; });
    nb::class_<OwnedLowRank>(module, "LowRank", "A low-rank change of a matrix; keeps the memory's owner alive.")
        .def("__init__", &make_low_rank, nb::arg("rank"), nb::arg("rows"), nb::arg("cols"), nb::arg("a"), nb::arg("b"),
             nb::arg("scale"), nb::arg("owner"));
    module.def("change_rows", &change_one);
    module.def("linear", &linear_one);
    module.def("fine_linear", &fine_one);
    module.def("linears", &linear_many);
    module.def("geglu_linear", &geglu_one);
    module.def("gated_linear", &gated_one);
    module.def("add_linear", &add_one);
}

}  // namespace pocketgem
