// The only file that knows Python: checks what arrives, then calls a kernel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "rms_norm.h"

namespace nb = nanobind;
using Rows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

bool is_float32(const nb::dlpack::dtype& type) {
    return type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 32;
}

bool is_bfloat16(const nb::dlpack::dtype& type) {
    return type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16;
}

template <typename T>
void run_rms_norm(const Rows& x, const float* weight, Rows& out, float eps) {
    nb::gil_scoped_release unlocked;
    pocketgem::rms_norm(static_cast<const T*>(x.data()), weight, static_cast<T*>(out.data()), x.shape(0), x.shape(1),
                        eps);
}

void rms_norm(Rows x, std::optional<Weight> weight, Rows out, float eps) {
    if (x.dtype() != out.dtype() || x.shape(0) != out.shape(0) || x.shape(1) != out.shape(1))
        throw nb::value_error("rms_norm: x and out differ in type or shape");
    if (weight && weight->shape(0) != x.shape(1)) throw nb::value_error("rms_norm: weight does not fit the rows");
    const float* scale = weight ? weight->data() : nullptr;
    if (is_float32(x.dtype())) return run_rms_norm<float>(x, scale, out, eps);
    if (is_bfloat16(x.dtype())) return run_rms_norm<pocketgem::bfloat16>(x, scale, out, eps);
    throw nb::type_error("rms_norm: rows must be float32 or bfloat16");
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "pocketgem's compiled kernels; pocketgem.kernels is the door to them.";
    // noconvert: a converted `out` would be a copy, written and thrown away in silence.
    module.def("rms_norm", &rms_norm, nb::arg("x").noconvert(), nb::arg("weight").noconvert().none(),
               nb::arg("out").noconvert(), nb::arg("eps"));
}
