// Rows of a table read from its file by position, not through a mapping. Linux only; elsewhere Python reads them.
#pragma once

#include <cstdint>

namespace pocketgem {

// Where row 0 of a table begins in an open file, and how long every row is.
struct RowFile {
    int descriptor;
    std::int64_t start;
    long row_bytes;
};

// Row ids[n] to base + places[n] * row_bytes; the ids ascend. Neighbours come in one call. Returns how many rows came
// whole: fewer than `count` where the file ends. Throws std::system_error where it cannot be read.
long read_rows(const RowFile& file, const std::int64_t* ids, const std::int64_t* places, long count,
               std::uint8_t* base);

// Asks the system to read these rows ahead and returns. What is wrong with them, the read itself will say.
void ask_rows(const RowFile& file, const std::int64_t* ids, long count);

}  // namespace pocketgem
