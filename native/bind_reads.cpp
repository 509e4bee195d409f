// Python's way to reads.h. Memory comes as addresses: the Python door knows what lies there.
#include <nanobind/nanobind.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "bind.h"
#include "reads.h"

namespace nb = nanobind;

namespace pocketgem {

#ifdef __linux__
namespace {

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

long read_some_rows(int descriptor, std::int64_t start, long row_bytes, std::uintptr_t ids, std::uintptr_t places,
                    long count, std::uintptr_t base) {
    try {
        nb::gil_scoped_release unlocked;
        return read_rows({descriptor, start, row_bytes}, at<const std::int64_t>(ids), at<const std::int64_t>(places),
                         count, at<std::uint8_t>(base));
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
}

void ask_some_rows(int descriptor, std::int64_t start, long row_bytes, std::uintptr_t ids, long count) {
    nb::gil_scoped_release unlocked;
    ask_rows({descriptor, start, row_bytes}, at<const std::int64_t>(ids), count);
}

}  // namespace

void bind_reads(nb::module_& module) {
    module.def("read_rows", &read_some_rows, nb::arg("descriptor"), nb::arg("start"), nb::arg("row_bytes"),
               nb::arg("ids_address"), nb::arg("places_address"), nb::arg("count"), nb::arg("base_address"));
    module.def("ask_rows", &ask_some_rows, nb::arg("descriptor"), nb::arg("start"), nb::arg("row_bytes"),
               nb::arg("ids_address"), nb::arg("count"));
}
#else
void bind_reads(nb::module_&) {}
#endif

}  // namespace pocketgem
