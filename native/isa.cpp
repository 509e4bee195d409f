// Every kernel for one instruction set. Compiled once for each, with POCKETGEM_SIMD naming its vectors' header and
// POCKETGEM_ISA and POCKETGEM_ISA_NAME the set as an identifier and as people write it.
#include <cstdint>
#include <cstring>
#include <utility>

#include POCKETGEM_SIMD

#include "kernel_set.h"

#include "elementwise.inl"
#include "quantize.inl"
#include "matmul.inl"
#include "dense.inl"
#include "attention.inl"

namespace pocketgem {

#define POCKETGEM_JOIN(a, b) a##b
#define POCKETGEM_NAME(isa) POCKETGEM_JOIN(isa, _set)

extern const KernelSet POCKETGEM_NAME(POCKETGEM_ISA);
const KernelSet POCKETGEM_NAME(POCKETGEM_ISA) = {POCKETGEM_ISA_NAME, kMatmul, kAttention, kElement};

}  // namespace pocketgem
