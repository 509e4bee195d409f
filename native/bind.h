// What each file of bindings adds to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace pocketgem {

void bind_linear(nanobind::module_& module);
void bind_experts(nanobind::module_& module);
void bind_pack(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_layer(nanobind::module_& module);
void bind_reads(nanobind::module_& module);

}  // namespace pocketgem
