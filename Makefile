# Two commands matter: `make run` (a real Gemma writes on this machine) and `make test`. The rest serves them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  ?= gemma-3-270m
PROMPT ?= The capital of France is

.PHONY: run test check bench gpu fuzz fuzz-media native-test tsan-test arm-test clean

run: $(VENV)/.run
	$(BIN)/pocketgem run $(MODEL) "$(PROMPT)" --max-tokens 64

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror native/*.cpp native/*.h native/*.inl native/tests/*.cpp native/tests/*.h
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/pocketgem bench $(MODEL)

# Every test and benchmark that needs a CUDA card. Without one the tests are skipped and say why. The card's torch must be
# in the environment already: `make gpu VENV=...` with a torch built for it.
gpu:
	$(BIN)/python -m pytest -m gpu -rs tests/test_device.py
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  $(BIN)/pocketgem bench $(MODEL) --device cuda --prefill 512 --depth 128 --sequences 1; \
	else echo "no CUDA card here: nothing was measured"; fi

fuzz: $(VENV)/.dev # the readers, for as long as wanted: make fuzz MINUTES=60
	$(BIN)/python -m tests.fuzz_checkpoint --minutes $(or $(MINUTES),10)

fuzz-media: $(VENV)/.dev # the decoders of pictures, sounds and videos: make fuzz-media CASES=100000
	$(BIN)/python -m tests.fuzz_media --cases $(or $(CASES),10000)

# The kernels alone, by native/tests: no read or write outside their memory, no undefined behaviour, no race; and for
# ARM in an emulator, each set on a processor that has nothing newer. Each builds for minutes. `make test` runs the
# same program, without the watching, where there are CMake and the compilers.
NATIVE := cmake -S native/tests
QEMU   := qemu-aarch64 -L /usr/aarch64-linux-gnu

native-test: # address and undefined behaviour
	$(NATIVE) -B build/native-asan -DSANITIZE=address,undefined
	cmake --build build/native-asan
	build/native-asan/check_kernels

tsan-test: # data races
	$(NATIVE) -B build/native-tsan -DSANITIZE=thread
	cmake --build build/native-tsan
	build/native-tsan/check_kernels --quick

arm-test: # Debian: g++-aarch64-linux-gnu and qemu-user
	$(NATIVE) -B build/native-arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/native-arm
	$(QEMU) -cpu max build/native-arm/check_kernels --sets neon-i8mm,portable
	$(QEMU) -cpu cortex-a76 build/native-arm/check_kernels --sets neon
	$(QEMU) -cpu cortex-a72 build/native-arm/check_kernels --sets neon-base

# The constraints keep pip from taking torch's build for graphics cards, gigabytes of it.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An editable install knows the rooms and the kernels that were there when it was made: new ones make it anew.
$(VENV)/.run: pyproject.toml CMakeLists.txt constraints.txt $(wildcard native/* native/simd/* src/pocketgem/*/__init__.py) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[default-model]"
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build
