#include <chrono>
#include <thread>

#include "check.h"

namespace pocketgem::check {
namespace {

// Counts are plain integers: a task run twice, or one not yet seen when `run` returns, is a race a sanitizer names.
void check_rounds(int threads, long rounds, Report& report) {
    Pool pool(threads);
    Random random(static_cast<std::uint64_t>(threads));
    report.expect(pool.threads() == threads, "it says it has %d threads", pool.threads());
    for (long round = 0; round < rounds; ++round) {
        const long tasks = random.below(round % 8 ? 12 : 300);
        std::vector<int> counts(static_cast<std::size_t>(tasks));
        pool.run(tasks, [&](long task) { ++counts[static_cast<std::size_t>(task)]; });
        for (long task = 0; task < tasks; ++task) {
            const int count = counts[static_cast<std::size_t>(task)];
            report.expect(count == 1, "round %ld: task %ld of %ld ran %d times", round, task, tasks, count);
        }
        if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than workers spin
    }
}

}  // namespace

void check_pool(Report& report, bool quick) {
    for (int threads = 1; threads <= 8; ++threads) {
        report.in("pool of " + std::to_string(threads));
        check_rounds(threads, quick ? 1500 : 6000, report);
        for (int i = 0; i < 20; ++i) Pool{threads};  // ended while its workers begin
    }
}

}  // namespace pocketgem::check
