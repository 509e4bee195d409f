// From the blocks of a file to the planes of packed.h, once, when a model is loaded.
#pragma once

#include <cstdint>

#include "packed.h"
#include "pool.h"

namespace pocketgem {

// `source`: rows x cols / block_size blocks of format.type, at any address; cols is a multiple of the block size.
// `target`: layout_of(format, rows, cols).bytes, all written but the gaps that bring a plane to its 64 bytes.
void pack(Pool& pool, const Format& format, const std::uint8_t* source, long rows, long cols, std::uint8_t* target);

}  // namespace pocketgem
