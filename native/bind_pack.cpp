// Python's way to pack.h and rows.h. Memory comes as addresses: the Python door knows the tensors, we their sizes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "bind.h"
#include "blocks.h"
#include "pack.h"
#include "rows.h"

namespace nb = nanobind;

namespace pocketgem {
namespace {

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

const Format& known_format(const std::string& type) {
    const Format* format = find_format(type);
    if (!format) refuse("pack: no format for " + type);
    return *format;
}

const RowType& known_row_type(const std::string& type) {
    const RowType* known = find_row_type(type);
    if (!known) refuse("dequantize_rows: cannot read rows of " + type);
    return *known;
}

// So many numbers, rounded up to whole panels, that no size computed from them overflows.
void check_shape(const std::string& type, long block, long rows, long cols) {
    constexpr long most = std::numeric_limits<long>::max() / 8;  // a weight is stored in 4 bytes at most
    if (cols <= 0 || cols % block)
        refuse(type + ": rows of " + std::to_string(cols) + " are not whole blocks of " + std::to_string(block));
    if (rows < 0 || rows > most / cols - kPanel)
        refuse(type + ": no matrix has " + std::to_string(rows) + " rows of " + std::to_string(cols));
}

void check_bytes(const char* what, std::int64_t given, std::int64_t needed) {
    if (given == needed) return;
    refuse(std::string("pack: ") + what + " has " + std::to_string(given) + " bytes, not " + std::to_string(needed));
}

std::int64_t packed_bytes(const std::string& type, long rows, long cols) {
    const Format& format = known_format(type);
    check_shape(type, block_size(format), rows, cols);
    return layout_of(format, rows, cols).bytes;
}

void pack_matrix(Pool& pool, const std::string& type, std::uintptr_t source, std::int64_t source_bytes, long rows,
                 long cols, std::uintptr_t target, std::int64_t target_bytes) {
    check_bytes("target", target_bytes, packed_bytes(type, rows, cols));
    const RowType& stored = known_row_type(type);
    check_bytes("source", source_bytes, rows * (cols / stored.block_size * stored.block_bytes));
    if (target % 64) refuse("pack: target does not begin on 64 bytes");
    nb::gil_scoped_release unlocked;
    pack(pool, known_format(type), at<const std::uint8_t>(source), rows, cols, at<std::uint8_t>(target));
}

void dequantize_some_rows(Pool* pool, const std::string& type, std::uintptr_t table, long rows, long cols,
                          std::uintptr_t ids_address, long count, float factor, std::uintptr_t out) {
    const RowType& stored = known_row_type(type);
    check_shape(type, stored.block_size, rows, cols);
    check_shape("ids", 1, count, cols);
    const auto* ids = at<const std::int64_t>(ids_address);
    if (!std::all_of(ids, ids + count, [=](std::int64_t id) { return id >= 0 && id < rows; }))
        refuse("dequantize_rows: an id is outside the " + std::to_string(rows) + " rows of the table");
    nb::gil_scoped_release unlocked;
    dequantize_rows(pool, stored, at<const std::uint8_t>(table), cols, ids, count, factor, at<float>(out));
}

}  // namespace

void bind_pack(nb::module_& module) {
    module.def("packed_bytes", &packed_bytes, nb::arg("type"), nb::arg("rows"), nb::arg("cols"));
    module.def("pack", &pack_matrix, nb::arg("pool"), nb::arg("type"), nb::arg("source_address"),
               nb::arg("source_bytes"), nb::arg("rows"), nb::arg("cols"), nb::arg("target_address"),
               nb::arg("target_bytes"));
    module.def("dequantize_rows", &dequantize_some_rows, nb::arg("pool").none(), nb::arg("type"),
               nb::arg("table_address"), nb::arg("rows"), nb::arg("cols"), nb::arg("ids_address"), nb::arg("count"),
               nb::arg("factor"), nb::arg("out_address"));
}

}  // namespace pocketgem
