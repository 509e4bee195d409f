#include "kernel_set.h"

#include <new>

namespace pocketgem {

#define POCKETGEM_SET(name) extern const KernelSet name##_set;
POCKETGEM_SETS
#undef POCKETGEM_SET

const KernelSet* const* kernel_sets() {
#define POCKETGEM_SET(name) &name##_set,
    static const KernelSet* const sets[] = {POCKETGEM_SETS nullptr};
#undef POCKETGEM_SET
    return sets;
}

void Buffer::Free::operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }

void* Buffer::bytes(std::size_t wanted) {
    if (wanted > size_) {
        memory_.reset();
        size_ = 0;
        memory_.reset(::operator new(wanted, std::align_val_t{64}));
        size_ = wanted;
    }
    return memory_.get();
}

std::unique_ptr<Buffer> Lender::take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<Buffer>();
    auto buffer = std::move(idle_.back());
    idle_.pop_back();
    return buffer;
}

void Lender::give(std::unique_ptr<Buffer> buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(buffer));
}

}  // namespace pocketgem
