#include "trial.h"

#include <cerrno>
#include <csignal>
#include <cstring>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace pocketgem {
namespace {

constexpr int kAskForFeature = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Linux 5.16
constexpr int kPatience = 5000;                         // milliseconds
constexpr int kRight = 0, kWrong = 1;                   // how the trial's process ends

// Linux gives the eight kilobytes of tile registers to processes that ask, once for all their threads.
std::string fault_of_permission() {
    if (syscall(SYS_arch_prctl, kAskForFeature, kTileData) == 0) return "";
    return std::string("Linux does not grant its registers (arch_prctl: ") + std::strerror(errno) + ")";
}

// In the new process: neither a handler of this program nor a core dump shall see how the trial ends.
[[noreturn]] void run(Trial trial) {
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP}) std::signal(signal, SIG_DFL);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0);
    _exit(trial() ? kRight : kWrong);
}

std::string told_by(int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == kRight) return "";
    if (!WIFSIGNALED(status)) return "a trial of its instructions gave wrong numbers";
    const int signal = WTERMSIG(status);
    return "a trial of its instructions ended by " +
           (signal == SIGILL ? std::string("SIGILL") : "signal " + std::to_string(signal));
}

}  // namespace

std::string fault_in(Trial trial) {
    const pid_t child = fork();
    if (child < 0) return std::string("a trial of its instructions could not begin: ") + std::strerror(errno);
    if (child == 0) run(trial);
    const timespec pause{0, 1'000'000};
    int status = 0;
    for (int waited = 0; waited < kPatience; ++waited) {
        const pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child) return told_by(status);
        if (ended < 0 && errno != EINTR) return "the end of a trial of its instructions was not reported";
        nanosleep(&pause, nullptr);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return "a trial of its instructions did not end within " + std::to_string(kPatience / 1000) + " seconds";
}

std::string fault_of(const KernelSet& set) {
    if (!set.trial) return "";
    const std::string refused = fault_of_permission();
    return refused.empty() ? fault_in(set.trial) : refused;
}

}  // namespace pocketgem

#else

namespace pocketgem {

std::string fault_in(Trial) { return "a trial of its instructions is known for Linux on x86-64 only"; }
std::string fault_of(const KernelSet& set) { return set.trial ? fault_in(set.trial) : ""; }

}  // namespace pocketgem

#endif
