// Addresses and weights as the bindings pass them on.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>
#include <vector>

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

// A low-rank change of a matrix [rows, cols], and the Python object whose memory it reads.
struct OwnedLowRank {
    LowRank change;
    long rows, cols;
    nanobind::object owner;
};

using RowChange = std::tuple<long, long, nanobind::object>;  // start, stop, LowRank

// The changes of rows of a matrix with this shape. Raises ValueError for one that does not fit.
inline std::vector<Change> changes_of(const std::vector<RowChange>& given, long rows, long outputs, long cols) {
    std::vector<Change> changes;
    changes.reserve(given.size());
    for (const auto& [start, stop, owner] : given) {
        const auto& owned = nanobind::cast<const OwnedLowRank&>(owner);
        if (start < 0 || stop < start || stop > rows || owned.rows != outputs || owned.cols != cols)
            throw nanobind::value_error("a change does not fit its rows or its matrix");
        changes.push_back({start, stop, &owned.change});
    }
    return changes;
}

inline Changes view_of(const std::vector<Change>& changes) {
    return {changes.data(), static_cast<long>(changes.size())};
}

}  // namespace pocketgem
