#include "pool.h"

#include <chrono>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace pocketgem {
namespace {

// A worker looks for work this long before it sleeps: longer than the pause between two kernels of one token, shorter
// than anyone would notice on a battery.
constexpr auto kSpin = std::chrono::microseconds(300);

// The caller waits this many rests, a millisecond or two, for the last tasks before it offers its core: another process
// would take it for longer than they take. After that they are on a thread that lost its own.
constexpr int kPatience = 100'000;

void rest() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::share(long tasks, Call call, const void* body) {
    const unsigned round = round_.load(std::memory_order_relaxed) + 1;
    call_ = call, body_ = body, tasks_ = tasks;
    done_.store(0, std::memory_order_relaxed);
    left_.store(static_cast<unsigned long long>(round) << 32 | static_cast<unsigned long long>(tasks),
                std::memory_order_release);
    round_.store(round);
    if (asleep_.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take(round);
    for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins)
        spins < kPatience ? rest() : std::this_thread::yield();
}

// `call_` and its fellows are read only after a task of their own round was taken: the caller cannot leave `share`, and
// so not change them, before that task is done. Taking a task looks at nothing but the one atomic word.
void Pool::take(unsigned round) {
    for (;;) {
        unsigned long long left = left_.load(std::memory_order_acquire);
        do {
            if (left >> 32 != round || (left & 0xffffffffu) == 0) return;
        } while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel));
        call_(body_, tasks_ - static_cast<long>(left & 0xffffffffu));
        done_.fetch_add(1, std::memory_order_acq_rel);
    }
}

void Pool::work() {
    unsigned seen = 0;
    while (wait_for_round(seen)) {
        seen = round_.load(std::memory_order_acquire);
        take(seen);
    }
}

// Until a round other than `seen` begins; false when the pool ends.
bool Pool::wait_for_round(unsigned seen) {
    const auto began = std::chrono::steady_clock::now();
    for (int spins = 1; round_.load(std::memory_order_acquire) == seen; ++spins) {
        if (stop_.load(std::memory_order_relaxed)) return false;
        rest();
        if (spins % 64 || std::chrono::steady_clock::now() - began < kSpin) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1);
        wake_.wait(lock, [&] { return stop_.load() || round_.load() != seen; });
        asleep_.fetch_sub(1);
    }
    return !stop_.load();
}

}  // namespace pocketgem
