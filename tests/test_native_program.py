"""The kernels checked without Python: native/tests, built for this machine and, where the tools are, for an ARM one."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pocketgem import kernels
from pocketgem.kernels import cpu

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "native" / "tests"
ARM_COMPILER, ARM_RUNNER = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_PROCESSORS = {  # the least that runs each set: one that needs more would die of it
    "max": ["neon-i8mm", "portable"],
    "cortex-a76": ["neon"],
    "cortex-a72": ["neon-base"],
}
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")  # where Debian and Ubuntu put them


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed")


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    said = done.stdout[-4000:] + done.stderr[-4000:]
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{said}"
    return done.stdout


def build(into: Path, *options: str) -> Path:
    output_of("cmake", "-S", PROGRAM, "-B", into, *options)
    output_of("cmake", "--build", into, "--parallel", "2")
    return into / "check_kernels"


def checked(output: str) -> set[str]:
    """The parts that the program says it has checked: ``pool``, and sets by name."""
    return {line.split(":")[0] for line in output.splitlines() if line.endswith(" checks, 0 failed")}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the set that this machine uses: the package's own build has compiled them all, and ``test_kernels.py`` and
    ``test_attention_kernels.py`` compare every one that runs here with torch. ``make native-test`` has them all."""
    needs("cmake", "c++")
    others = ";".join(name for name, needed in cpu.SETS.items() if needed and name != kernels.choice().name)
    return build(tmp_path_factory.mktemp("native"), f"-DPOCKETGEM_LEAVE_OUT={others}")


def test_the_set_this_machine_uses_gives_what_the_formats_say(program: Path) -> None:
    used = {str(kernels.choice().name)} if kernels.choice().name is not None else set()
    assert checked(output_of(program, "--quick")) == {"pool", "trial", "portable", "tiles-soft"} | used


def test_a_set_that_is_not_in_the_build_is_refused_by_name(program: Path) -> None:
    done = subprocess.run([program, "--sets", "portable,abacus"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "abacus" in done.stdout


@pytest.mark.skipif(platform.machine() in {"aarch64", "arm64"}, reason="this machine runs the ARM sets itself")
def test_every_arm_set_gives_the_same_in_an_emulator(tmp_path: Path) -> None:
    needs("cmake", ARM_COMPILER, ARM_RUNNER)
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}")
    arm, emulator = build(tmp_path, *target), (ARM_RUNNER, "-L", ARM_LIBRARIES, "-cpu")
    for processor, names in ARM_PROCESSORS.items():
        said = output_of(*emulator, processor, arm, "--quick", "--sets", ",".join(names))
        assert checked(said) == {"pool", "trial", *names}


def test_python_and_cmake_know_the_same_sets() -> None:
    text = (ROOT / "native" / "sets.cmake").read_text(encoding="utf-8")
    listed = [
        line.split()[1] for line in text.splitlines() if line.lstrip().startswith("pocketgem_kernel_set(${target}")
    ]
    assert listed == [*cpu.SETS]
