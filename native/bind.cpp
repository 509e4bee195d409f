// The module. The files named bind_* are the only ones that know Python.
#include "bind.h"

NB_MODULE(_native, module) {
    module.doc() = "pocketgem's compiled kernels; pocketgem.kernels is the door to them.";
    pocketgem::bind_linear(module);
    pocketgem::bind_experts(module);
    pocketgem::bind_pack(module);
    pocketgem::bind_attention(module);
    pocketgem::bind_layer(module);
    pocketgem::bind_reads(module);
}
