// Attention and row functions, as Python sees them. pocketgem/kernels checked the addresses and sizes that arrive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "bind.h"
#include "kernel_set.h"
#include "spans.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

void check_heads(long heads, long kv_heads, long dim) {
    if (dim < 32 || dim % 32) throw nb::value_error("attention: the head size must be a multiple of 32");
    if (kv_heads < 1 || heads < kv_heads || heads % kv_heads)
        throw nb::value_error("attention: query heads must be a multiple of key heads");
}

void write(Kernels& kernels, Address k, Address v, Address norm, float eps, bool normed_values, Address cos,
           Address sin, long rows, long kv_heads, long dim, const std::vector<WriteSpan>& spans) {
    check_heads(kv_heads, kv_heads, dim);
    const std::vector<KeyTarget> targets = targets_of(spans, rows);
    nb::gil_scoped_release unlocked;
    write_keys(kernels,
               {at<const float>(k), at<const float>(v), at<const float>(norm), eps, normed_values, at<const float>(cos),
                at<const float>(sin), kv_heads, dim},
               targets.data(), static_cast<long>(targets.size()));
}

void read(Kernels& kernels, Address q, Address norm, float eps, Address cos, Address sin, Address positions,
          Address last, long rows, long heads, long kv_heads, long dim, long window, float scale,
          const std::vector<ReadSpan>& spans, Address out) {
    check_heads(heads, kv_heads, dim);
    if (window < 0) throw nb::value_error("attention: a window counts tokens; 0 is none");
    const std::vector<KeySpan> seen = spans_of(spans, rows);
    nb::gil_scoped_release unlocked;
    attend(kernels,
           {at<const float>(q),
            at<const float>(norm),
            eps,
            at<const float>(cos),
            at<const float>(sin),
            {at<const std::int64_t>(positions), at<const std::int64_t>(last)},
            heads,
            kv_heads,
            dim,
            window,
            scale,
            at<float>(out)},
           seen.data(), static_cast<long>(seen.size()));
}

// ---- row functions, over whole arrays -------------------------------------------------------------------------------

constexpr long kNumbersATask = 16 << 10;

template <typename Each>
void over_rows(Kernels& kernels, long rows, long n, const Each& each) {
    nb::gil_scoped_release unlocked;
    const long step = std::max(1l, kNumbersATask / std::max(1l, n));
    kernels.pool.run((rows + step - 1) / step, [&](long task) {
        for (long row = task * step; row < std::min(rows, (task + 1) * step); ++row) each(row * n);
    });
}

void norm_rows(Kernels& k, Address x, Address weight, Address out, long rows, long n, float eps) {
    over_rows(k, rows, n, [&](long i) {
        k.set.element.norm(at<const float>(x) + i, at<const float>(weight), at<float>(out) + i, n, eps);
    });
}

void add_norm_rows(Kernels& k, Address x, Address y, Address weight, long rows, long n, float eps, float factor) {
    over_rows(k, rows, n, [&](long i) {
        k.set.element.add_norm(at<float>(x) + i, at<const float>(y) + i, at<const float>(weight), n, eps, factor);
    });
}

void geglu_rows(Kernels& k, Address gate, Address up, Address out, long rows, long n) {
    over_rows(k, rows, n, [&](long i) {
        k.set.element.geglu(at<const float>(gate) + i, at<const float>(up) + i, at<float>(out) + i, n);
    });
}

void softcap_rows(Kernels& k, Address x, long rows, long n, float cap) {
    over_rows(k, rows, n, [&](long i) { k.set.element.softcap(at<float>(x) + i, n, cap); });
}

void add_rows(Kernels& k, Address x, Address y, long rows, long n) {
    over_rows(k, rows, n, [&](long i) { k.set.element.add(at<float>(x) + i, at<const float>(y) + i, n); });
}

// Of each row where its largest number is, the first of equals; None where some are not finite.
std::vector<std::optional<long>> peak_rows(Kernels& k, Address x, long rows, long n) {
    const long parts = (n + kNumbersATask - 1) / kNumbersATask;
    std::vector<Peak> found(static_cast<std::size_t>(rows * parts));
    {
        nb::gil_scoped_release unlocked;
        k.pool.run(rows * parts, [&](long task) {
            const long from = task % parts * kNumbersATask;
            Peak& peak = found[static_cast<std::size_t>(task)];
            peak = k.set.element.peak(at<const float>(x) + task / parts * n + from, std::min(kNumbersATask, n - from));
            peak.at += from;
        });
    }
    std::vector<std::optional<long>> ids;
    for (auto row = found.begin(); row != found.end(); row += parts) {
        const bool finite = std::all_of(row, row + parts, [](const Peak& one) { return one.finite; });
        const auto best = std::max_element(row, row + parts, [](auto& a, auto& b) { return a.value < b.value; });
        ids.push_back(finite ? std::optional<long>(best->at) : std::nullopt);
    }
    return ids;
}

}  // namespace

void bind_attention(nb::module_& module) {
    module.def("write_keys", &write, nb::arg("kernels"), nb::arg("k"), nb::arg("v"), nb::arg("norm"), nb::arg("eps"),
               nb::arg("normed_values"), nb::arg("cos"), nb::arg("sin"), nb::arg("rows"), nb::arg("kv_heads"),
               nb::arg("dim"), nb::arg("spans"));
    module.def("attend", &read, nb::arg("kernels"), nb::arg("q"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"),
               nb::arg("sin"), nb::arg("positions"), nb::arg("last"), nb::arg("rows"), nb::arg("heads"),
               nb::arg("kv_heads"), nb::arg("dim"), nb::arg("window"), nb::arg("scale"), nb::arg("spans"),
               nb::arg("out"));
    module.def("peaks", &peak_rows, nb::arg("kernels"), nb::arg("x"), nb::arg("rows"), nb::arg("n"));
    module.def("norm", &norm_rows, nb::arg("kernels"), nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("rows"),
               nb::arg("n"), nb::arg("eps"));
    module.def("add_norm", &add_norm_rows, nb::arg("kernels"), nb::arg("x"), nb::arg("y"), nb::arg("weight"),
               nb::arg("rows"), nb::arg("n"), nb::arg("eps"), nb::arg("factor"));
    module.def("geglu", &geglu_rows, nb::arg("kernels"), nb::arg("gate"), nb::arg("up"), nb::arg("out"),
               nb::arg("rows"), nb::arg("n"));
    module.def("softcap", &softcap_rows, nb::arg("kernels"), nb::arg("x"), nb::arg("rows"), nb::arg("n"),
               nb::arg("cap"));
    module.def("add", &add_rows, nb::arg("kernels"), nb::arg("x"), nb::arg("y"), nb::arg("rows"), nb::arg("n"));
}

}  // namespace pocketgem
