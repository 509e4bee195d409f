// Every kernel for one instruction set. Compiled once for each, with POCKETGEM_SIMD naming its vectors' header and
// POCKETGEM_ISA and POCKETGEM_ISA_NAME the set as an identifier and as people write it. A set that multiplies
// in a way of its own names it in POCKETGEM_OWN, and what it is written in in POCKETGEM_UNIT.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include POCKETGEM_SIMD

#include "kernel_set.h"

#include "elementwise.inl"
#include "quantize.inl"
#include "matmul.inl"
#include "dense.inl"
#include "lowrank.inl"
#include "attention.inl"

#ifdef POCKETGEM_UNIT
#include POCKETGEM_UNIT
#endif
#ifdef POCKETGEM_OWN
#include POCKETGEM_OWN
#else
namespace pocketgem {
namespace {
constexpr MatmulKernels kProducts = kMatmul;
constexpr Trial kTrial = nullptr;
}  // namespace
}  // namespace pocketgem
#endif

namespace pocketgem {

#define POCKETGEM_JOIN(a, b) a##b
#define POCKETGEM_NAME(isa) POCKETGEM_JOIN(isa, _set)

extern const KernelSet POCKETGEM_NAME(POCKETGEM_ISA);
const KernelSet POCKETGEM_NAME(POCKETGEM_ISA) = {POCKETGEM_ISA_NAME, kProducts, kAttention, kElement, kLowRank, kTrial};

}  // namespace pocketgem
