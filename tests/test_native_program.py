"""The kernels checked without Python: native/tests, built for this machine and, where the tools are, for an ARM one."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "native" / "tests"
ARM_COMPILER, ARM_RUNNER = "aarch64-linux-gnu-g++", "qemu-aarch64"
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


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("cmake", "c++")
    return build(tmp_path_factory.mktemp("native"))


@pytest.mark.native
def test_every_set_this_machine_runs_gives_what_the_formats_say(program: Path) -> None:
    checked = output_of(program, "--quick")
    assert "pool: " in checked
    assert "portable: " in checked


@pytest.mark.native
def test_a_set_that_is_not_in_the_build_is_refused_by_name(program: Path) -> None:
    done = subprocess.run([program, "--sets", "portable,abacus"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "abacus" in done.stdout


@pytest.mark.native
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine runs the ARM sets itself")
def test_every_arm_set_gives_the_same_in_an_emulator(tmp_path: Path) -> None:
    needs("cmake", ARM_COMPILER, ARM_RUNNER)
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}")
    arm = build(tmp_path, *target)
    newest = (ARM_RUNNER, "-L", ARM_LIBRARIES, "-cpu", "max", arm, "--quick", "--sets", "neon-i8mm,neon,portable")
    for part in ("quantize", "matmul", "elements", "attention"):
        assert "neon-i8mm: " in output_of(*newest, "--only", part)
    oldest = (ARM_RUNNER, "-L", ARM_LIBRARIES, "-cpu", "cortex-a72", arm, "--quick", "--sets", "neon-base")
    assert "neon-base: " in output_of(*oldest, "--only", "matmul")
