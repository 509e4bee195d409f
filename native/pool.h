// Threads that share the tasks of one kernel call. A task is taken when a thread is free, so a core that another
// process holds, or a slower core of a hybrid processor, delays one task and not the whole.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace pocketgem {

class Pool {
public:
    explicit Pool(int threads);  // the caller's thread is one of them
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(task) once for every task in [0, tasks), on whichever thread is free; returns when all are done.
    // One call at a time: the owner of the model serialises them. `body` must not throw.
    template <typename Body>
    void run(long tasks, const Body& body) {
        if (tasks <= 1 || workers_.empty()) {
            for (long task = 0; task < tasks; ++task) body(task);
            return;
        }
        share(tasks, [](const void* self, long task) { (*static_cast<const Body*>(self))(task); }, &body);
    }

private:
    using Call = void (*)(const void* body, long task);

    void share(long tasks, Call call, const void* body);
    void take(unsigned round);
    void work();
    bool wait_for_round(unsigned seen);

    Call call_ = nullptr;
    const void* body_ = nullptr;
    long tasks_ = 0;
    // The round in the high half, the tasks not yet taken in the low half: a thread that wakes late cannot take a task
    // of a later round by mistake.
    alignas(64) std::atomic<unsigned long long> left_{0};
    alignas(64) std::atomic<long> done_{0};
    alignas(64) std::atomic<unsigned> round_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace pocketgem
