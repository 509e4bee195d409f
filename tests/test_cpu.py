"""Which kernels and how many threads suit a computer: made-up processors, hybrid layouts, containers, hostile files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgem import InputError, kernels
from pocketgem.kernels import cpu
from pocketgem.kernels.cores import Cores, default_threads, find_cores
from pocketgem.kernels.system import MAX_CPUS, System, this_system

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
AVX2 = {"avx2", "fma", "f16c"}
AMX = AVX512 | AVX2 | {"amx_tile", "amx_int8"}
ALL = [*cpu.SETS]


def linux(root: Path, files: Mapping[str, str], *, allowed: Iterable[int] | None = None, logical: int = 1) -> System:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mine = None if allowed is None else frozenset(allowed)
    return System("Linux", "x86_64", logical, root, lambda name: None, lambda: mine)


def topology(*cores: Iterable[int]) -> dict[str, str]:
    """Files that tell which logical processors are one core."""
    return {
        f"sys/devices/system/cpu/cpu{one}/topology/core_cpus_list": ",".join(map(str, core))
        for core in map(list, cores)
        for one in core
    }


def each(name: str, values: Iterable[int]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{number}/{name}": f"{value}\n" for number, value in enumerate(values)}


def macos(entries: Mapping[str, str], machine: str = "arm64") -> System:
    return System("Darwin", machine, 8, Path("/nonexistent"), entries.get, lambda: None)


# ---- instruction sets ----------------------------------------------------------------------------------------------


def test_flags_of_linux(tmp_path: Path) -> None:
    text = "processor\t: 0\nmodel name\t: A  Processor\nflags\t\t: fpu avx2 fma\nvmx flags\t: avx512f\n"
    system = linux(tmp_path, {"proc/cpuinfo": text})
    assert cpu.features(system) == {"fpu", "avx2", "fma"}
    assert cpu.processor_name(system) == "A Processor"


def test_a_feature_counts_where_every_core_has_it(tmp_path: Path) -> None:
    text = "Features\t: fp asimd asimddp i8mm\n\nFeatures\t: fp asimd asimddp\n"
    assert cpu.features(linux(tmp_path, {"proc/cpuinfo": text})) == {"fp", "asimd", "asimddp"}


def test_features_of_macos() -> None:
    told = {"hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "0", "hw.optional.arm.FEAT_BF16": "1"}
    assert cpu.features(macos(told)) == {"asimddp", "bf16"}
    told = {"machdep.cpu.features": "FMA F16C AVX1.0", "machdep.cpu.leaf7_features": "AVX2 AVX512F AVX512VNNI"}
    assert cpu.features(macos(told, "x86_64")) == {"fma", "f16c", "avx", "avx2", "avx512f", "avx512_vnni"}


def test_other_systems_tell_nothing() -> None:
    system = System("Windows", "AMD64", 16, Path("/nonexistent"), lambda name: None, lambda: None)
    assert cpu.features(system) == frozenset()
    assert cpu.processor_name(system) == "AMD64"


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_is_native_with_any_of_three(feature: str) -> None:
    assert cpu.multiplies_bfloat16({feature, "fpu"})
    assert not cpu.multiplies_bfloat16({"fpu"})


# ---- sets of kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (AMX, "amx"),
        (AMX - {"amx_int8"}, "avx512"),
        (AMX - {"avx512_vnni"}, "avx2"),
        (AVX512 | AVX2, "avx512"),
        ((AVX512 | AVX2) - {"avx512_vnni"}, "avx2"),
        (AVX2 | {"avx_vnni"}, "avx2-vnni"),
        (AVX2, "avx2"),
        (AVX2 - {"f16c"}, "portable"),
        ({"asimd", "asimddp", "i8mm"}, "neon-i8mm"),
        ({"asimd", "asimddp"}, "neon"),
        ({"asimd", "i8mm"}, "neon-base"),
        ({"asimd"}, "neon-base"),
        (set(), "portable"),
    ],
)
def test_the_best_set_is_chosen(features: set[str], name: str) -> None:
    chosen = cpu.choose(None, ALL, features)
    assert chosen == cpu.choose("native", ALL, features)
    assert chosen.name == name
    assert [status.name for status in chosen.each] == ALL
    assert chosen.reason.startswith(name)


def test_what_was_not_built_is_not_chosen() -> None:
    chosen = cpu.choose(None, ["avx2", "portable"], AVX512 | AVX2)
    assert chosen.name == "avx2"
    reasons = {status.name: (status.usable, status.reason) for status in chosen.each}
    assert reasons["avx512"] == (False, "not built into this install")
    assert reasons["neon"] == (False, "this processor lacks asimddp")
    assert reasons["portable"] == (True, "runs everywhere")
    assert cpu.choose(None, [], AVX2).name is None


def test_a_set_that_fails_its_trial_is_not_chosen_and_says_why() -> None:
    tried: list[str] = []

    def fault_of(name: str) -> str:
        tried.append(name)
        return "a trial of its instructions ended by SIGILL" if name == "amx" else ""

    chosen = cpu.choose(None, ALL, AMX, fault_of)
    assert chosen.name == "avx512"
    assert chosen.each[0] == cpu.SetStatus("amx", False, "a trial of its instructions ended by SIGILL")
    assert cpu.choose("avx2", ALL, AMX, fault_of).name == "avx2"
    with pytest.raises(InputError, match=r"'amx' is not possible here: a trial of its instructions ended by SIGILL; "):
        cpu.choose("amx", ALL, AMX, fault_of)
    assert cpu.choose("amx", ALL, AMX).name == "amx"  # where it passes


def test_nothing_is_tried_that_lacks_a_feature_or_was_not_built() -> None:
    def fault_of(name: str) -> str:
        assert name in {"avx2", "portable"}, f"{name} was tried"
        return ""

    assert cpu.choose(None, ALL, AVX2, fault_of).name == "avx2"
    assert cpu.choose(None, ["avx2", "portable"], AMX, fault_of).name == "avx2"


@pytest.mark.native
def test_a_set_is_tried_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Native:
        @staticmethod
        def built_sets() -> list[str]:
            return ALL

        @staticmethod
        def fault_of(name: str) -> str:
            tried.append(name)
            return "no registers for it" if name == "amx" else ""

    monkeypatch.setattr(kernels, "_import", lambda: (Native, ""))
    monkeypatch.setattr(kernels, "features", lambda system=None: frozenset(AMX))
    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    kernels._fault_of.cache_clear()
    try:
        assert kernels.choice() == kernels.choice()
        assert kernels.report().kernels == "avx512"
        assert kernels.report().sets[0].reason == "no registers for it"
        assert sorted(tried) == ["amx", "avx2", "avx512", "portable"]
        monkeypatch.setenv(cpu.VARIABLE, "amx")
        with pytest.raises(InputError, match="no registers for it"):
            kernels.choice()
    finally:
        kernels._fault_of.cache_clear()


@pytest.mark.native
def test_what_the_compiled_kernels_say_of_each_set() -> None:
    """Tile registers that Linux does not know, or a set without a trial: an answer, never a dead process."""
    for name in kernels.native.built_sets():
        fault = kernels.native.fault_of(name)
        assert fault == "" or (name == "amx" and fault), f"{name}: {fault}"
        if name == "amx" and "amx_tile" not in cpu.features():
            assert fault.startswith(("Linux does not grant its registers", "a trial of its instructions"))
    with pytest.raises(ValueError, match="no such kernel set"):
        kernels.native.fault_of("abacus")


def test_a_wish_is_granted_or_refused() -> None:
    assert cpu.choose("torch", ALL, AVX512).name is None
    assert cpu.choose("torch", [], set()).reason == "pure torch, because POCKETGEM_KERNELS=torch"
    chosen = cpu.choose("portable", ALL, AVX512)
    assert (chosen.name, chosen.reason) == ("portable", "portable, because POCKETGEM_KERNELS=portable")
    with pytest.raises(
        InputError, match="'neon' is not possible here: this processor lacks asimddp; it can be avx2, port"
    ):
        cpu.choose("neon", ALL, AVX2)
    with pytest.raises(
        InputError, match="'avx2' is not possible here: not built into this install; it can be portable"
    ):
        cpu.choose("avx2", ["portable"], AVX2)
    with pytest.raises(InputError, match="there is no such set"):
        cpu.choose("x" * 10_000, ALL, AVX2)


def test_the_report_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu.VARIABLE, raising=False)
    report = kernels.report()
    assert report.threads.count >= 1
    assert report.kernels == kernels.choice().name
    monkeypatch.setenv(cpu.VARIABLE, "torch")
    assert kernels.report().kernels is None
    monkeypatch.setenv(cpu.VARIABLE, "")
    assert kernels.report() == report
    monkeypatch.setenv(cpu.VARIABLE, "abacus")
    with pytest.raises(InputError, match="abacus"):
        kernels.report()


# ---- cores ---------------------------------------------------------------------------------------------------------


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    system = linux(tmp_path, topology((0, 2), (1, 3)), allowed=range(4))
    assert find_cores(system) == Cores(4, 2, None, None, 4, None, 2, "physical cores")
    assert default_threads(system).reason == "one for each of 2 physical cores"


def test_intel_hybrid(tmp_path: Path) -> None:
    files = topology((0, 1), (2, 3), (4,), (5,), (6,))
    files |= {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-6\n"}
    cores = find_cores(linux(tmp_path, files, allowed=range(7)))
    assert (cores.physical, cores.performance, cores.efficiency, cores.usable) == (5, 2, 3, 2)
    assert cores.counted == "physical performance cores"


@pytest.mark.parametrize(
    ("name", "values", "efficiency"),
    [
        ("cpu_capacity", [250, 250, 850, 1024], 2),
        ("cpu_capacity", [1024] * 4, None),
        ("cpufreq/cpuinfo_max_freq", [5_100_000, 5_100_000, 3_300_000, 3_300_000], 2),
        ("cpufreq/cpuinfo_max_freq", [5_800_000, 5_500_000, 5_500_000, 5_500_000], None),
    ],
)
def test_small_cores_by_capacity_or_clock(tmp_path: Path, name: str, values: list[int], efficiency: int | None) -> None:
    cores = find_cores(linux(tmp_path, topology((0,), (1,), (2,), (3,)) | each(name, values), allowed=range(4)))
    assert cores.efficiency == efficiency
    assert cores.usable == 4 - (efficiency or 0)


def test_affinity_is_obeyed(tmp_path: Path) -> None:
    files = topology((0, 1), (2, 3), (4,), (5,)) | {
        "sys/devices/cpu_core/cpus": "0-3",
        "sys/devices/cpu_atom/cpus": "4-5",
    }
    assert default_threads(linux(tmp_path, files, allowed={0, 1, 4})).count == 1
    only_small = default_threads(linux(tmp_path, files, allowed={4, 5}))
    assert only_small.count == 2
    assert only_small.reason == "one for each of 2 physical cores that this process may use"


def test_processors_that_are_switched_off_do_not_count(tmp_path: Path) -> None:
    files = topology((0,), (1,), (2,)) | {"sys/devices/system/cpu/online": "0-1\n"}
    assert find_cores(linux(tmp_path, files)).physical == 2


def test_without_topology_the_allowed_ones_count(tmp_path: Path) -> None:
    assert default_threads(linux(tmp_path, {}, allowed={3, 5, 7}, logical=64)).count == 3
    assert default_threads(linux(tmp_path, {}, logical=6)).count == 6


def test_cores_of_macos() -> None:
    told = {
        "hw.logicalcpu": "8",
        "hw.physicalcpu": "8",
        "hw.perflevel0.physicalcpu": "6",
        "hw.perflevel1.physicalcpu": "2",
    }
    assert find_cores(macos(told)) == Cores(8, 8, 6, 2, None, None, 6, "performance cores")
    assert default_threads(macos({"hw.physicalcpu": "4"}, "x86_64")).count == 4
    assert default_threads(macos({})).count == 8


@pytest.mark.parametrize(("machine", "count"), [("AMD64", 8), ("ARM64", 16)])
def test_cores_elsewhere(machine: str, count: int) -> None:
    system = System("Windows", machine, 16, Path("/nonexistent"), lambda name: None, lambda: None)
    assert default_threads(system).count == count


# ---- containers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/../../outside\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_a_containers_limit_is_rounded_down(tmp_path: Path, files: dict[str, str], count: int) -> None:
    choice = default_threads(linux(tmp_path, topology((0,), (1,), (2,), (3,)) | files, allowed=range(4)))
    assert choice.count == count
    assert ("container" in choice.reason) == (count < 4)


# ---- nonsense ------------------------------------------------------------------------------------------------------

NONSENSE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", "-", "0-", "-1", "5-2", "0-99999999999", "9" * 400, "1,,2", "٣", "0-3\x00", "max max", "1 0", "0 1"]
    ),
)


@given(texts=st.lists(NONSENSE, min_size=9, max_size=9))
def test_nonsense_in_the_systems_files_never_fails(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    paths = (
        "proc/cpuinfo", "proc/self/cgroup", "sys/fs/cgroup/cpu.max", "sys/devices/cpu_core/cpus",
        "sys/devices/cpu_atom/cpus", "sys/devices/system/cpu/online",
        "sys/devices/system/cpu/cpu0/topology/core_cpus_list", "sys/devices/system/cpu/cpu1/cpu_capacity",
        "sys/devices/system/cpu/cpux/topology",
    )  # fmt: skip
    root = tmp_path_factory.mktemp("nonsense")
    safe = [text.encode("utf-8", "replace").decode() for text in texts]
    system = linux(root, dict(zip(paths, safe, strict=True)), allowed={0, 1}, logical=2)
    assert 1 <= default_threads(system).count <= MAX_CPUS
    assert cpu.choose(None, ALL, cpu.features(system)).name is not None


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_bytes(b"flags : \xff\xfe avx2\n" * 3)
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").mkdir()  # not even a file
    system = linux(tmp_path, {})
    assert "avx2" in cpu.features(system)
    assert default_threads(system).count == 1


def test_this_computer() -> None:
    assert 1 <= default_threads(this_system()).count <= this_system().logical
