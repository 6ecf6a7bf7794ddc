# SPDX-License-Identifier: Apache-2.0
#
# One command per job; CI runs the same ones. Everything happens in .venv, which the first target that needs it
# makes; stamps in it remember what was installed and built, so a repeated call costs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find _native -name '*.[ch]' -o -name '*.inc' -o -name '*.pyx' -o -name '*.pxi')
# What pip and setuptools say is shown only when they fail; a log per target, as two may run at once.
QUIETLY = log=$(VENV)/$(notdir $@).log; quietly() { "$$@" >$$log 2>&1 || { cat $$log >&2; exit 1; }; }; quietly
# Python compiles what is imported, which is a small part of what is installed.
PIP = $(QUIETLY) $(BIN)/python -m pip --disable-pip-version-check install --no-compile
# Dependencies, metadata and the command; the extension is built once, by $(VENV)/.built alone.
INSTALL = export PMRUN_PREBUILT=1; $(PIP) --no-build-isolation --editable

# The first of these that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

export PMRUN_WERROR := 1
# pip left the compiling to the first import; what that made must be kept, or every rank compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo dev test lint format type tidy asan tsan fuzz bench sdist-check clean

help:
	@echo "make demo         build pmrun here and train on 8 ranks with it"
	@echo "make test         everything that must hold: lint, types, tidy, C tests, Python tests"
	@echo "make dev          build pmrun and install what development needs, in $(VENV)"
	@echo "make lint format  check the Python style, or set it"
	@echo "make type         mypy --strict, and the stub against the extension"
	@echo "make tidy         the rules of the house, as tests"
	@echo "make asan tsan    the tests under AddressSanitizer and UBSan, and under ThreadSanitizer"
	@echo "make fuzz         the wire's decoders under libFuzzer, FUZZ_S seconds each"
	@echo "make arm64        the plain C tests compiled for arm64, and run by qemu"
	@echo "make bench        measure against MPI and Gloo (takes a while, wants a quiet machine)"
	@echo "make sdist-check  build the wheel from the source distribution, install and run it"
	@echo "make clean        remove what was built, but not $(VENV)"

# ---- the virtual environment ------------------------------------------------------------------------------

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then \
		echo "pmrun: no Python 3.10 or newer found; install one ('apt-get install python3 python3-venv python3-dev') or set PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! command -v "$(PYTHON)" >/dev/null; then \
		echo "pmrun: cannot find PYTHON=$(PYTHON); give the path of a Python 3.10 or newer" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
		echo "pmrun: $(PYTHON) is older than Python 3.10; set PYTHON=/path/to/a/newer/python3" >&2; exit 1; fi
	@if ! command -v "$${CC:-cc}" >/dev/null; then \
		echo "pmrun: no C compiler ('$${CC:-cc}' not found); install one ('apt-get install gcc libc6-dev', 'dnf install gcc') or set CC" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "pmrun: $(PYTHON) cannot make virtual environments; install its venv module ('apt-get install python3-venv')" >&2; exit 1; fi
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'pip>=21.3' 'setuptools>=77' 'Cython>=3.1' 'numpy>=2.0'
	@touch $@

$(VENV)/.built: $(VENV)/.made setup.py $(NATIVE)
	@echo "building the extension"
	@$(QUIETLY) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "installing pmrun and what the demo needs in $(VENV)"
	@$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "installing pmrun and what development needs in $(VENV)"
	@$(INSTALL) '.[dev,demo]'
	@touch $@ $(VENV)/.demo

READY := $(VENV)/.built $(VENV)/.dev

# pip waits for the network while the compiler works. The last line shows that what was built runs, and fills caches.
dev:
	@$(MAKE) --no-print-directory -j2 $(READY)
	@$(BIN)/pmrun -n 1 -- $(BIN)/python -c 'import pmrun; assert pmrun.init().allreduce(1) == 1'

# ---- the main job -----------------------------------------------------------------------------------------

demo:
	@$(MAKE) --no-print-directory -j2 $(VENV)/.built $(VENV)/.demo
	$(BIN)/pmrun -n 8 examples/train_digits.py
	@echo
	@echo "That was: $(BIN)/pmrun -n 8 examples/train_digits.py"
	@echo "Try next:"
	@echo "  $(BIN)/pmrun --help"
	@echo "  $(BIN)/pmrun -n 2 examples/train_digits.py            the same on two ranks"
	@echo "  $(BIN)/pmrun -n 4 --dry-run examples/train_digits.py  what would be started"
	@echo "  $(BIN)/pmrun -n 4 -- hostname                         any program"
	@echo "  make test                                         everything that must hold"

# ---- checks -----------------------------------------------------------------------------------------------

test: lint types $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy cannot follow an editable install that maps folders, so it reads the tree as a wheel would have it.
.PHONY: types
types: $(READY)
	@rm -rf build/typing
	@$(QUIETLY) $(BIN)/python setup.py --quiet build_py --build-lib build/typing
	MYPYPATH=build/typing $(BIN)/mypy -p pmrun

type: types
	$(BIN)/python -m pytest -q tests/tidy/test_stubs.py

tidy: $(READY)
	$(BIN)/python -m pytest -q tests/tidy

# ---- sanitizers -------------------------------------------------------------------------------------------

# Those that reach the core through Python, on at most three ranks where a test has several sizes; a process takes
# some ten times as long here. The launcher's own tests hold no C.
ASAN_TESTS ?= tests/gang tests/failure/test_abort_record.py tests/unit/test_context.py tests/unit/test_objects.py \
	--deselect tests/gang/test_example_digits.py --ignore tests/gang/test_bench.py --ignore tests/gang/test_checkpoint.py -k 'not [1- and not [4 and not [5 and not [8 and not kernels'

build/asan/.built: $(READY)
	@echo "building the extension under AddressSanitizer"
	@export PMRUN_SANITIZE=address,undefined; $(QUIETLY) $(BIN)/python setup.py --quiet \
		build_ext --build-lib build/asan --build-temp build/asan-objects
	@touch $@

asan: build/asan/.built
	$(BIN)/python -m pytest tests/native --sanitize=address,undefined
	@$(QUIETLY) $(BIN)/python setup.py --quiet build_py --build-lib build/asan
	export LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so)" PYTHONMALLOC=malloc PYTHONPATH=build/asan; \
	export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0; \
	$(BIN)/python -c 'import pmrun._native as n; assert "build/asan" in n.__file__, n.__file__'; \
	$(BIN)/python -m pytest $(ASAN_TESTS)

tsan: $(READY)
	$(BIN)/python -m pytest tests/native --sanitize=thread

FUZZ_S ?= 60
CLANG ?= clang

fuzz: $(READY)
	@if ! command -v "$(CLANG)" >/dev/null; then \
		echo "pmrun: no clang ('$(CLANG)' not found), whose libFuzzer this needs; install it ('apt-get install clang') or set CLANG" >&2; exit 1; fi
	$(BIN)/python tests/fuzz.py "$(CLANG)" $(FUZZ_S)

# ---- another machine --------------------------------------------------------------------------------------

# The core and its plain C tests, cross-compiled, and run where qemu's user mode is installed. Left out is what takes
# minutes there; the memory model stays that of this machine.
# Those that are no load for an emulator; sockets and many ranks are.
ARM64_TESTS ?= copy or communicators or heap or hmac or inlet or match or p2p or protocol or reduce_op

.PHONY: arm64
arm64: $(READY)
	@if ! command -v aarch64-linux-gnu-gcc >/dev/null; then \
		echo "pmrun: no cross compiler (aarch64-linux-gnu-gcc not found); install one ('apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross')" >&2; exit 1; fi
	$(BIN)/python -m pytest tests/native --machine=aarch64 -k '$(ARM64_TESTS)'

# ---- figures and packages ---------------------------------------------------------------------------------

bench: $(READY)
	$(BIN)/python benchmarks/bench_all.py

sdist-check: $(READY)
	@rm -rf dist build/sdist-check
	@$(QUIETLY) $(BIN)/python -m build --no-isolation --outdir dist .
	@$(BIN)/python -m venv build/sdist-check
	@$(QUIETLY) build/sdist-check/bin/python -m pip --disable-pip-version-check install dist/*.whl
	cd build/sdist-check && bin/pmrun -n 2 -- true && bin/python -W error -c 'import pmrun; print(pmrun.init().size)'
	@echo "the wheel made from the source distribution works"

clean:
	rm -rf build dist src/*.egg-info src/pmrun/*.so .mypy_cache .ruff_cache .pytest_cache
	rm -f $(VENV)/.built $(VENV)/.demo $(VENV)/.dev
