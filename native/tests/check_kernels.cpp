// Checks every kernel against a slow reference, without Python:
//   check_kernels [--sets a,b] [--only pool|trial|quantize|matmul|dense|lowrank|linear|experts|elements|attention]
//   [--quick]
// Without --sets: all of this build that this processor runs. Exits with 1 where a check failed, 2 for a wrong option.
#include <cstdlib>
#include <string_view>

#include "../trial.h"
#include "check.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pocketgem::check {
namespace {

struct Options {
    std::string sets, only;
    bool quick = false;
};

bool processor_has([[maybe_unused]] std::string_view set) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
    if (set == "amx" || set == "avx512") return avx512;  // and amx's trial says the rest
    if (set == "avx2-vnni") return avx2 && __builtin_cpu_supports("avxvnni");
    if (set == "avx2") return avx2;
#elif defined(__aarch64__) && defined(__linux__)
    const bool dots = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    if (set == "neon-i8mm") return dots && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
    if (set == "neon") return dots;
#endif
    return true;
}

// Only amx has registers that the system must grant: those of tiles-soft are memory.
bool runs_here(const KernelSet& set) {
    if (!processor_has(set.name)) return false;
    const bool granted = set.name == std::string_view("amx");
    return (granted ? fault_of(set) : set.trial ? fault_in(set.trial) : "").empty();
}

bool listed(std::string_view list, std::string_view name) {
    while (!list.empty()) {
        const std::size_t comma = list.find(',');
        if (list.substr(0, comma) == name) return true;
        list = comma == std::string_view::npos ? "" : list.substr(comma + 1);
    }
    return false;
}

bool known(std::string_view name) {
    for (const KernelSet* const* set = kernel_sets(); *set; ++set)
        if (name == (*set)->name) return true;
    return false;
}

// Every name of a list, which must be one of this build's.
bool all_known(std::string_view list) {
    for (bool more = !list.empty(); more;) {
        const std::size_t comma = list.find(',');
        const std::string name(list.substr(0, comma));
        if (!known(name)) {
            std::printf("check_kernels: this build has no set %s\n", name.c_str());
            return false;
        }
        more = comma != std::string_view::npos;
        if (more) list = list.substr(comma + 1);
    }
    return true;
}

void check_set(const KernelSet& set, const Options& options, Report& report) {
    const auto wanted = [&](const char* part) { return options.only.empty() || options.only == part; };
    const long failed = report.failures(), checked = report.checked();
    if (wanted("quantize")) check_quantize(set, report);
    if (wanted("matmul")) check_matmul(set, report, options.quick);
    if (wanted("dense")) check_dense(set, report);
    if (wanted("lowrank")) check_lowrank(set, report);
    if (wanted("elements")) check_elements(set, report);
    if (wanted("linear")) check_linear(set, report, options.quick);
    if (wanted("experts")) check_experts(set, report, options.quick);
    if (wanted("attention")) check_attention(set, report, options.quick);
    std::printf("%s: %ld checks, %ld failed\n", set.name, report.checked() - checked, report.failures() - failed);
}

// What belongs to no set.
template <typename Check>
void check_part(const char* part, const Options& options, Report& report, const Check& check) {
    if (!options.only.empty() && options.only != part) return;
    const long failed = report.failures(), checked = report.checked();
    check();
    std::printf("%s: %ld checks, %ld failed\n", part, report.checked() - checked, report.failures() - failed);
}

int check_all(const Options& options) {
    if (!all_known(options.sets)) return 2;
    Report report;
    check_part("pool", options, report, [&] { check_pool(report, options.quick); });
    check_part("trial", options, report, [&] { check_trial(report); });
    const bool of_sets = options.only != "pool" && options.only != "trial";
    for (const KernelSet* const* set = kernel_sets(); *set && of_sets; ++set) {
        const bool wanted = options.sets.empty() ? runs_here(**set) : listed(options.sets, (*set)->name);
        if (wanted) check_set(**set, options, report);
        else std::printf("%s: left out\n", (*set)->name);
    }
    return report.failures() ? 1 : 0;
}

}  // namespace
}  // namespace pocketgem::check

int main(int count, char** words) {
    pocketgem::check::Options options;
    for (int i = 1; i < count; ++i) {
        const std::string_view word = words[i];
        if (word == "--quick") {
            options.quick = true;
        } else if (word == "--sets" && i + 1 < count) {
            options.sets = words[++i];
        } else if (word == "--only" && i + 1 < count) {
            options.only = words[++i];
        } else {
            std::printf("usage: check_kernels [--sets a,b] [--only PART] [--quick]\n");
            return 2;
        }
    }
    return pocketgem::check::check_all(options);
}
