// Whether a set's own instructions work: some hosts advertise a matrix unit that dies when it is used.
#pragma once

#include <string>

#include "kernel_set.h"

namespace pocketgem {

// Why a set cannot be used although the processor has what it needs; empty where it can. For a set with a trial: the
// system is asked for the unit's registers, for this process and the threads it will have, and the trial runs in a
// process of its own, whose end is waited for a few seconds at most.
std::string fault_of(const KernelSet& set);

// The second half of it.
std::string fault_in(Trial trial);

}  // namespace pocketgem
