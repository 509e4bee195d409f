// Addresses and weights as the bindings pass them on.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "linear.h"

namespace pocketgem {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// A weight and the Python object whose memory it reads.
struct OwnedWeight {
    Weight weight;
    nanobind::object owner;
};

}  // namespace pocketgem
