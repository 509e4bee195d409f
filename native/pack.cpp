#include "pack.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace pocketgem {
namespace {

// Tens of microseconds: taking a task costs nothing beside it, and the threads end nearly together.
constexpr long kTaskWeights = 1 << 17;

// Four neighbouring columns of one row. The fields of all four are moved at once: a mask keeps each in its own byte.
inline std::uint32_t four(const Block& row, long column) {
    std::uint32_t word;
    std::memcpy(&word, row.q + column, sizeof word);
    return word;
}

inline void put_four(std::uint32_t word, std::uint8_t* to, long place, int r) {
    std::memcpy(to + 64 * place + 4 * r, &word, sizeof word);
}

// The planes `base` and `high` of 32 columns from `column` on. rows: [kPanel]
template <int bits>
inline void weave_base(const Block* rows, long column, std::uint8_t* to) {
    constexpr std::uint32_t low = 0x0f0f0f0fu;
    for (int r = 0; r < kPanel; ++r) {
        if constexpr (bits == 8) {
            for (int j = 0; j < 8; ++j) put_four(four(rows[r], column + 4 * j), to, j, r);
        } else {
            for (int i = 0; i < 4; ++i) {
                const std::uint32_t first = four(rows[r], column + 8 * i), second = four(rows[r], column + 8 * i + 4);
                put_four((first & low) | (second & low) << 4, to, i, r);
            }
        }
    }
}

template <int bits>  // 5 or 6
inline void weave_high(const Block* rows, long column, std::uint8_t* to) {
    constexpr int width = bits - 4, each = 8 / width;  // bits of a column; columns of a byte
    constexpr std::uint32_t mask = width == 1 ? 0x01010101u : 0x03030303u;
    for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < width; ++i) {
            std::uint32_t word = 0;
            for (int t = 0; t < each; ++t)
                word |= (four(rows[r], column + 4 * (each * i + t)) >> 4 & mask) << width * t;
            put_four(word, to, i, r);
        }
    }
}

// One number of every row, side by side. `of` gives it from a row.
template <typename Number, typename Of>
inline void put_numbers(const Block* rows, std::uint8_t* to, long place, Of of) {
    Number numbers[kPanel];
    for (int r = 0; r < kPanel; ++r) numbers[r] = of(rows[r]);
    std::memcpy(to + place * static_cast<long>(sizeof numbers), numbers, sizeof numbers);
}

// Where the planes of one panel begin.
struct Panel {
    Panel(const Layout& all, long panel, std::uint8_t* target) {
        const auto at = [=](const Plane& plane) { return target + plane.start + panel * plane.stride; };
        base = at(all.base), high = at(all.high), scale = at(all.scale), minimum = at(all.minimum);
        // The float16 of a block of 32 are its scale and minimum; those of a block of 256 are units.
        block_scale = all.format.super ? at(all.scale_unit) : scale;
        block_minimum = all.format.super ? at(all.minimum_unit) : minimum;
    }
    std::uint8_t *base, *high, *scale, *minimum, *block_scale, *block_minimum;
};

template <typename Type>
inline void put_scales(const Block* rows, long block, const Panel& to) {
    constexpr Format format = Type::format;
    put_numbers<std::uint16_t>(rows, to.block_scale, block, [](const Block& row) { return row.scale; });
    if constexpr (format.minimum)
        put_numbers<std::uint16_t>(rows, to.block_minimum, block, [](const Block& row) { return row.minimum; });
    if constexpr (format.super) {
        constexpr int groups = kSuper / format.group;
        for (int g = 0; g < groups; ++g) {
            const long group = block * groups + g;
            put_numbers<std::int8_t>(rows, to.scale, group, [g](const Block& row) { return row.scales[g]; });
            if constexpr (format.minimum)
                put_numbers<std::uint8_t>(rows, to.minimum, group, [g](const Block& row) { return row.minimums[g]; });
        }
    }
}

template <typename Type>
void pack_panel(const Layout& all, const std::uint8_t* source, long panel, std::uint8_t* target) {
    constexpr int bits = Type::format.bits;
    constexpr long size = block_size(Type::format), parts = size / kBlock;
    const long blocks = all.cols / size, row_bytes = blocks * Type::bytes;
    const long rows = std::min(kPanel, all.rows - panel * kPanel);
    const std::uint8_t* from = source + panel * kPanel * row_bytes;
    const Panel to(all, panel, target);
    Block held[kPanel] = {};  // rows past the end stay zero
    for (long block = 0; block < blocks; ++block, from += Type::bytes) {
        for (long r = 0; r < rows; ++r) Type::unpack(from + r * row_bytes, held[r]);
        for (long part = 0; part < parts; ++part) {
            const long place = block * parts + part;
            weave_base<bits>(held, part * kBlock, to.base + place * (bits == 8 ? 512 : 256));
            if constexpr (bits == 5 || bits == 6)
                weave_high<bits>(held, part * kBlock, to.high + place * 64 * (bits - 4));
        }
        put_scales<Type>(held, block, to);
    }
}

using PackPanel = void (*)(const Layout& all, const std::uint8_t* source, long panel, std::uint8_t* target);

template <typename... Types>
PackPanel panel_packer(const Format& format, blocks::List<Types...>) {
    PackPanel found = nullptr;
    ((format.type == std::string_view(Types::format.type) && (found = pack_panel<Types>)) || ...);
    return found;
}

}  // namespace

void pack(Pool& pool, const Format& format, const std::uint8_t* source, long rows, long cols, std::uint8_t* target) {
    const PackPanel pack_one = panel_packer(format, blocks::All{});
    const Layout all = layout_of(format, rows, cols);
    const long each = std::max(1L, kTaskWeights / (kPanel * std::max(1L, cols)));  // panels of a task
    pool.run((all.panels + each - 1) / each, [&](long task) {
        const long end = std::min(all.panels, (task + 1) * each);
        for (long panel = task * each; panel < end; ++panel) pack_one(all, source, panel, target);
    });
}

}  // namespace pocketgem
