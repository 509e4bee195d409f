// Rows of a table as it lies in a file, gathered and turned to float32 in one go.
#pragma once

#include <cstdint>
#include <string_view>

#include "pool.h"

namespace pocketgem {

// What is known of a stored type: a row of it is cols / block_size times block_bytes.
struct RowType {
    long block_size, block_bytes;
    void (*dequantize)(const std::uint8_t* row, long cols, float factor, float* out);
};

// The 12 block types of packed.h, F32, F16 and BF16; null for any other.
const RowType* find_row_type(std::string_view type);

// out[n] = table[ids[n]] * factor, float32 [count, cols]. With factor 1 the same bits as StoredTensor.rows of
// pocketgem/checkpoint/tensor.py, any NaN for a NaN. ids must be rows of the table. Without a pool the caller's thread
// does it all.
void dequantize_rows(Pool* pool, const RowType& type, const std::uint8_t* table, long cols, const std::int64_t* ids,
                     long count, float factor, float* out);

}  // namespace pocketgem
