// Spans of rows as Python passes them on.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "attention.h"
#include "owned.h"

namespace pocketgem {

using WriteSpan = std::tuple<long, long, Address, Address>;             // start, stop, k, v
using ReadSpan = std::tuple<long, long, Address, Address, long, long>;  // start, stop, k, v, first, keys

// The same for many layers, in arrays of 64-bit numbers: the rows of a sequence, and where its keys and values of one
// layer are: written, read, the position of the first that is read, and how many are.
struct RowSpan {
    std::int64_t start, stop;
};
struct Place {
    std::uint64_t write_k, write_v, read_k, read_v;
    std::int64_t first, keys;
};

inline void check_rows(long start, long stop, long rows) {
    if (start < 0 || stop < start || stop > rows)
        throw nanobind::value_error("attention: a span is not within the rows");
}

inline std::vector<KeyTarget> targets_of(const std::vector<WriteSpan>& spans, long rows) {
    std::vector<KeyTarget> targets;
    targets.reserve(spans.size());
    for (const auto& [start, stop, k, v] : spans) {
        check_rows(start, stop, rows);
        targets.push_back({start, stop, at<std::uint16_t>(k), at<std::uint16_t>(v)});
    }
    return targets;
}

inline std::vector<KeySpan> spans_of(const std::vector<ReadSpan>& spans, long rows) {
    std::vector<KeySpan> seen;
    seen.reserve(spans.size());
    for (const auto& [start, stop, k, v, first, keys] : spans) {
        check_rows(start, stop, rows);
        if (first < 0 || keys < 0) throw nanobind::value_error("attention: a span has negative positions or sizes");
        seen.push_back({start, stop, at<const std::uint16_t>(k), at<const std::uint16_t>(v), first, keys});
    }
    return seen;
}

inline std::vector<KeyTarget> targets_of(const RowSpan* spans, const Place* places, long count, long rows) {
    std::vector<KeyTarget> targets;
    targets.reserve(static_cast<std::size_t>(count));
    for (long i = 0; i < count; ++i) {
        check_rows(spans[i].start, spans[i].stop, rows);
        targets.push_back({spans[i].start, spans[i].stop, at<std::uint16_t>(places[i].write_k),
                           at<std::uint16_t>(places[i].write_v)});
    }
    return targets;
}

inline std::vector<KeySpan> spans_of(const RowSpan* spans, const Place* places, long count) {
    std::vector<KeySpan> seen;
    seen.reserve(static_cast<std::size_t>(count));
    for (long i = 0; i < count; ++i) {
        const Place& one = places[i];
        if (one.first < 0 || one.keys < 0) throw nanobind::value_error("attention: negative positions or sizes");
        seen.push_back({spans[i].start, spans[i].stop, at<const std::uint16_t>(one.read_k),
                        at<const std::uint16_t>(one.read_v), one.first, one.keys});
    }
    return seen;
}

}  // namespace pocketgem
