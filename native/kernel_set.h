// The kernels of one instruction set, and what running them takes: threads and scratch memory.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "lowrank.h"
#include "matmul.h"
#include "pool.h"

namespace pocketgem {

// Runs instructions whose presence says little of whether they work, with known numbers; true where they came out
// right.
using Trial = bool (*)();

struct KernelSet {
    const char* name;
    MatmulKernels matmul;
    AttentionKernels attention;
    ElementKernels element;
    LowRankKernels lowrank;
    Trial trial;  // for trial.h; null where the processor's word is enough
};

// All sets in this build, best first; ends with a null. Which of them this processor runs is for the caller to know.
const KernelSet* const* kernel_sets();

// Memory that grows to what was last asked for, aligned to 64 bytes; its contents are not kept.
class Buffer {
public:
    template <typename T>
    T* of(std::size_t count) {
        return static_cast<T*>(bytes(count * sizeof(T)));
    }

private:
    struct Free {
        void operator()(void* p) const;
    };
    void* bytes(std::size_t wanted);

    std::unique_ptr<void, Free> memory_;
    std::size_t size_ = 0;
};

// Buffers lent to tasks: as many as run at once, used again and again.
class Lender {
public:
    class Loan {
    public:
        explicit Loan(Lender& from) : from_(from), buffer_(from.take()) {}
        ~Loan() { from_.give(std::move(buffer_)); }
        Loan(const Loan&) = delete;
        Loan& operator=(const Loan&) = delete;
        Buffer& operator*() { return *buffer_; }
        Buffer* operator->() { return buffer_.get(); }

    private:
        Lender& from_;
        std::unique_ptr<Buffer> buffer_;
    };

private:
    std::unique_ptr<Buffer> take();
    void give(std::unique_ptr<Buffer> buffer);

    std::mutex mutex_;
    std::vector<std::unique_ptr<Buffer>> idle_;
};

// Room for quantised rows.
struct Rounded {
    Buffer q, scales, sums16, sums32;
};

// One model's access to the kernels. Calls take turns.
struct Kernels {
    Kernels(const KernelSet& set, int threads) : pool(threads), set(set) {}

    Pool pool;
    const KernelSet& set;
    Lender scratch;                 // for tasks
    Buffer normed, product;         // for the call
    Rounded rounded[2];             // the same: its rows, and what lies between two products
    Buffer corrections[3], low[3];  // the same, for each matrix of one
    Buffer layer[3];                // between the calls of a layer
};

}  // namespace pocketgem
