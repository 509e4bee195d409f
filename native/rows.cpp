#include "rows.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace pocketgem {
namespace {

constexpr long kTaskWeights = 1 << 15;  // about 10 microseconds: fewer are not worth waking a thread for

inline float float_of_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline std::uint32_t bits_of_float(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Choices between three numbers rather than branches, so that a row of them vectorises. A subnormal is made from its
// integer: multiplying one up would give zero in a thread that flushes subnormals.
inline float widen_half(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu;
    const std::uint32_t normal = (rest << 13) + 0x38000000u, special = (rest << 13) | 0x7f800000u;
    const std::uint32_t small = bits_of_float(static_cast<float>(static_cast<std::int32_t>(rest)) * 0x1p-24f);
    return float_of_bits(sign | (rest >= 0x7c00u ? special : rest >= 0x0400u ? normal : small));
}

// Every product of a q and scales is exact in float32 (11 bits of a half, at most 13 of the others), so a compiler that
// contracts a product and a sum into one instruction changes no bit.
template <typename Type>
inline void dequantize_block(const Block& block, float factor, float* __restrict out) {
    constexpr Format format = Type::format;
    const float unit = widen_half(block.scale), minimum_unit = format.minimum ? widen_half(block.minimum) : 0.0f;
    for (long g = 0; g < block_size(format) / format.group; ++g, out += format.group) {
        const float scale = format.super ? static_cast<float>(block.scales[g]) * unit : unit;
        const float minimum = format.super ? -(static_cast<float>(block.minimums[g]) * minimum_unit) : minimum_unit;
        const std::uint8_t* q = block.q + g * format.group;
        for (int k = 0; k < format.group; ++k) {
            const int number = format.bits == 8 ? static_cast<std::int8_t>(q[k]) : q[k] - format.zero;
            const float product = static_cast<float>(number) * scale;
            out[k] = (format.minimum ? product + minimum : product) * factor;
        }
    }
}

template <typename Type>
void dequantize_row(const std::uint8_t* row, long cols, float factor, float* out) {
    constexpr long size = block_size(Type::format);
    Block block{};
    for (long column = 0; column < cols; column += size, row += Type::bytes) {
        Type::unpack(row, block);
        dequantize_block<Type>(block, factor, out + column);
    }
}

struct F32 {
    using Bits = std::uint32_t;
    static float widen(Bits bits) { return float_of_bits(bits); }
};
struct F16 {
    using Bits = std::uint16_t;
    static float widen(Bits bits) { return widen_half(bits); }
};
struct BF16 {
    using Bits = std::uint16_t;
    static float widen(Bits bits) { return float_of_bits(static_cast<std::uint32_t>(bits) << 16); }
};

template <typename Type>
void widen_row(const std::uint8_t* __restrict row, long cols, float factor, float* __restrict out) {
    for (long k = 0; k < cols; ++k) {
        typename Type::Bits bits;
        std::memcpy(&bits, row + k * static_cast<long>(sizeof bits), sizeof bits);  // a file aligns nothing
        out[k] = Type::widen(bits) * factor;
    }
}

struct Named {
    std::string_view name;
    RowType type;
};

template <typename... Types>
const RowType* find(std::string_view name, blocks::List<Types...>) {
    static constexpr Named all[] = {
        {Types::format.type, {block_size(Types::format), Types::bytes, dequantize_row<Types>}}...,
        {"F32", {1, 4, widen_row<F32>}},
        {"F16", {1, 2, widen_row<F16>}},
        {"BF16", {1, 2, widen_row<BF16>}},
    };
    for (const Named& each : all)
        if (each.name == name) return &each.type;
    return nullptr;
}

}  // namespace

const RowType* find_row_type(std::string_view type) { return find(type, blocks::All{}); }

void dequantize_rows(Pool* pool, const RowType& type, const std::uint8_t* table, long cols, const std::int64_t* ids,
                     long count, float factor, float* out) {
    const long row_bytes = cols / type.block_size * type.block_bytes;
    const long each = std::max(1L, kTaskWeights / std::max(1L, cols));  // rows of a task
    const auto some = [&](long task) {
        const long end = std::min(count, (task + 1) * each);
        for (long n = task * each; n < end; ++n)
            type.dequantize(table + ids[n] * row_bytes, cols, factor, out + n * cols);
    };
    const long tasks = (count + each - 1) / each;
    if (pool) return pool->run(tasks, some);
    for (long task = 0; task < tasks; ++task) some(task);
}

}  // namespace pocketgem
