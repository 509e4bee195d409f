// What is said of a set whose instructions fail when they are tried.
#include <csignal>
#include <cstdlib>

#include "../trial.h"
#include "check.h"

namespace pocketgem::check {
namespace {

bool right() { return true; }
bool wrong() { return false; }
bool dies() { return std::raise(SIGILL) != 0; }
bool stops() { return std::raise(SIGSEGV) != 0; }

void expect(Trial trial, const std::string& want, Report& report) {
    const std::string said = fault_in(trial);
    report.expect(said == want, "says '%s', not '%s'", said.c_str(), want.c_str());
}

}  // namespace

void check_trial(Report& report) {
    report.in("trial");
#if defined(__linux__) && defined(__x86_64__)
    const auto handled = std::signal(SIGILL, [](int) { std::_Exit(0); });  // as programs have that report their faults
    expect(right, "", report);
    expect(wrong, "a trial of its instructions gave wrong numbers", report);
    expect(dies, "a trial of its instructions ended by SIGILL", report);
    expect(stops, "a trial of its instructions ended by signal 11", report);
    std::signal(SIGILL, handled);
    for (const KernelSet* const* set = kernel_sets(); *set; ++set) {
        if (!(*set)->trial) continue;
        // Unasked for registers, too: where the processor has none the instructions die, and only their process.
        const std::string said = fault_in((*set)->trial);
        const bool dies_here = std::string((*set)->name) == "amx" && said.rfind("a trial of its instructions", 0) == 0;
        report.expect(said.empty() || dies_here, "%s: '%s'", (*set)->name, said.c_str());
    }
#else
    expect(right, "a trial of its instructions is known for Linux on x86-64 only", report);
#endif
    for (const KernelSet* const* set = kernel_sets(); *set; ++set)
        report.expect((*set)->trial || fault_of(**set).empty(), "%s has a fault without a trial", (*set)->name);
}

}  // namespace pocketgem::check
