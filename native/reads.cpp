#ifdef __linux__

#include "reads.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace pocketgem {
namespace {

constexpr long kPieces = 512;  // of one call; the system takes a thousand

// How many of the ids are neighbours of the first.
long run_of(const std::int64_t* ids, long count) {
    const long most = std::min(count, kPieces);
    long length = 1;
    while (length < most && ids[length] == ids[0] + length) ++length;
    return length;
}

std::int64_t read_at(int descriptor, const iovec* pieces, long count, std::int64_t at) {
    for (;;) {
        const ssize_t got = preadv(descriptor, pieces, static_cast<int>(count), at);
        if (got >= 0) return got;
        if (errno != EINTR) throw std::system_error(errno, std::generic_category());
    }
}

}  // namespace

long read_rows(const RowFile& file, const std::int64_t* ids, const std::int64_t* places, long count,
               std::uint8_t* base) {
    iovec pieces[kPieces];
    for (long n = 0; n < count;) {
        const long length = run_of(ids + n, count - n);
        for (long k = 0; k < length; ++k)
            pieces[k] = {base + places[n + k] * file.row_bytes, static_cast<std::size_t>(file.row_bytes)};
        const std::int64_t got = read_at(file.descriptor, pieces, length, file.start + ids[n] * file.row_bytes);
        if (got != length * file.row_bytes) return n + static_cast<long>(got / file.row_bytes);
        n += length;
    }
    return count;
}

void ask_rows(const RowFile& file, const std::int64_t* ids, long count) {
    for (long n = 0; n < count;) {
        const long length = run_of(ids + n, count - n);
        posix_fadvise(file.descriptor, file.start + ids[n] * file.row_bytes, length * file.row_bytes,
                      POSIX_FADV_WILLNEED);
        n += length;
    }
}

}  // namespace pocketgem

#endif
