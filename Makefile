# Everything runs from .venv, which `make install` builds from pyproject.toml and constraints.txt.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
NATIVE := $(shell find runtime/native -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test phones slow check format bench train kill-resume memory optimum bench-partners native cross sanitize fuzz browser cross-tokens soak java android clean

help:                ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 16

install: .venv/installed ## .venv with everything for development

.venv/installed: pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit("edgeslim needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: install        ## prune, export, run, profile and compare a bundled model
	$(BIN)/edgeslim compress examples/quickstart.toml -o out/demo --force

test: install        ## the whole test suite, under ten minutes on two cores
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not device"

phones: install      ## an aarch64 phone behind adb, its programs under qemu
	$(BIN)/python -m pytest -q tests/devices/test_phones.py -m slow

slow: install        ## tests that take longer, and those that need a GPU
	$(BIN)/python -m pytest -q -m "slow or gpu"

check: install build/types ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

format: install      ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy does not know that top-level folders are packages of edgeslim; links show it the installed layout.
build/types: edgeslim exporters runtime devices
	rm -rf $@ && mkdir -p $@/edgeslim
	ln -s $(CURDIR)/edgeslim/* $(CURDIR)/exporters $(CURDIR)/runtime $(CURDIR)/devices $@/edgeslim/

bench: install       ## benchmarks; a JSON line a case
	$(BIN)/python tests/bench/bench_prune.py
	$(BIN)/python tests/bench/bench_methods.py

kill-resume: install ## kill -9 a prune at 50 random moments; every resume must be bit-identical
	$(BIN)/python tests/bench/kill_resume.py --kills 50

memory: install      ## peak memory of pruning a model of over 500 M parameters
	$(BIN)/python tests/bench/bench_memory.py

optimum: install     ## optimum (in an environment of its own) loads a Llama bundle and gives the same tokens
	test -d build/optimum-venv || $(PYTHON) -m venv build/optimum-venv
	build/optimum-venv/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt 'optimum-onnx[onnxruntime]' 'transformers<4.58'
	$(BIN)/python tests/interop/optimum_check.py build/optimum-venv/bin/python examples/models/tiny-llama

bench-partners: install ## stock onnxruntime-genai and llama.cpp on two shapes (builds llama.cpp; half an hour)
	test -d build/llama-venv || $(PYTHON) -m venv build/llama-venv
	CMAKE_ARGS=-DGGML_NATIVE=ON build/llama-venv/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) llama-cpp-python gguf
	for shape in llama mamba2; do \
	  $(BIN)/python tests/bench/bench_partners.py prepare --shape $$shape && \
	  $(BIN)/python tests/bench/bench_partners.py run --shape $$shape || exit 1; done

# What is native needs a C++ compiler and CMake; `cross` also qemu-user, and g++-aarch64-linux-gnu or a Python that has
# the ziglang package: make cross ZIG_PYTHON=python3. With zig the library runs on systems since glibc 2.28.
CMAKE ?= cmake
JOBS ?= 2
ZIG_PYTHON ?=
FUZZ_SEED ?= 1
FUZZ_COUNT ?= 500000
FUZZ_BUNDLES ?= 10000
SOAK_TOKENS ?= 100000
SOAK_SESSIONS ?= 1000
NDK ?= $(ANDROID_NDK_HOME)
ORT := $(BIN)/python -c 'from edgeslim.runtime.native_library import onnxruntime_library as f; print(f())'
QEMU := qemu-aarch64 -cpu max -L build/aarch64-root
AARCH64 := --toolchain cross/aarch64-linux.cmake $(if $(ZIG_PYTHON),-DEDGESLIM_ZIG_PYTHON=$(ZIG_PYTHON))

native:              ## the kernel library in build/native; its variants compared
	$(CMAKE) -S runtime/native -B build/native -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/native -j $(JOBS)
	build/native/kernels_test
	build/native/sequences_test
	build/native/engine_test
	build/native/builtin_test

cross:               ## the library for aarch64 Linux in build/aarch64; its variants compared under qemu
	@command -v $(or $(ZIG_PYTHON),aarch64-linux-gnu-g++) qemu-aarch64 >/dev/null || \
	  { echo "make cross needs qemu-user, and g++-aarch64-linux-gnu or ZIG_PYTHON=…"; exit 1; }
	$(CMAKE) -S runtime/native -B build/aarch64 $(AARCH64)
	$(CMAKE) --build build/aarch64 -j $(JOBS)
	$(CMAKE) -S runtime/native -B build/aarch64-tests $(AARCH64) -DEDGESLIM_ZIG_TARGET=musl -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/aarch64-tests -j $(JOBS) --target kernels_test sequences_test
	qemu-aarch64 -cpu max build/aarch64-tests/kernels_test --need neon-dot
	qemu-aarch64 -cpu max build/aarch64-tests/sequences_test --need neon-dot

cross-tokens: install ## transformers' tokens from the native runtime: here, under sanitizers, for aarch64 under qemu
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 >/dev/null || \
	  { echo "make cross-tokens needs g++-aarch64-linux-gnu and qemu-user"; exit 1; }
	$(BIN)/python tests/interop/aarch64_root.py build/aarch64-root $(PIP_ARGS)
	$(CMAKE) -S runtime/native -B build/native -DEDGESLIM_TESTS=ON
	$(CMAKE) -S runtime/native -B build/sanitize -DEDGESLIM_SANITIZE=ON -DEDGESLIM_TESTS=ON
	$(CMAKE) -S runtime/native -B build/aarch64-programs --toolchain cross/aarch64-linux.cmake -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/native -j $(JOBS) --target tokens
	$(CMAKE) --build build/sanitize -j $(JOBS) --target tokens
	$(CMAKE) --build build/aarch64-programs -j $(JOBS) --target tokens engine_test edgeslim-bench
	$(BIN)/python tests/interop/native_tokens.py build/tokens
	$(BIN)/python tests/interop/native_tokens.py build/tokens --ort "$$($(ORT))" --run build/native/tokens
	$(BIN)/python tests/interop/native_tokens.py build/tokens --ort "$$($(ORT))" --run build/sanitize/tokens
	$(BIN)/python tests/interop/native_tokens.py build/tokens --ort build/aarch64-root/libonnxruntime.so \
	  --run $(QEMU) build/aarch64-programs/tokens
	for bundle in llama-dense llama-packed mamba2-dense mamba2-packed; do \
	  $(QEMU) build/aarch64-programs/engine_test build/tokens/$$bundle build/aarch64-root/libonnxruntime.so 3 || exit 1; done
	$(QEMU) build/aarch64-programs/edgeslim-bench build/tokens/mamba2-packed --ort build/aarch64-root/libonnxruntime.so \
	  --prompt-tokens 8 --new-tokens 4 --repeats 2

sanitize:            ## variants compared and the reader fuzzed briefly, under ASan and UBSan
	$(CMAKE) -S runtime/native -B build/sanitize -DEDGESLIM_SANITIZE=ON -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/sanitize -j $(JOBS) --target kernels_test sequences_test engine_test builtin_test fuzz fuzz_bundle fuzz_graph
	build/sanitize/kernels_test
	build/sanitize/sequences_test
	build/sanitize/engine_test
	build/sanitize/builtin_test
	build/sanitize/fuzz 0 20000
	build/sanitize/fuzz_bundle 0 20000
	build/sanitize/fuzz_graph 0 20000

fuzz: sanitize build/small ## a million executions of each reader, in two processes; 10,000 damaged bundles loaded
	build/sanitize/fuzz $(FUZZ_SEED) $(FUZZ_COUNT) & first=$$!; \
	build/sanitize/fuzz $$(($(FUZZ_SEED) + 1)) $(FUZZ_COUNT); second=$$?; wait $$first && exit $$second
	build/sanitize/fuzz_bundle $(FUZZ_SEED) $(FUZZ_COUNT) & first=$$!; \
	build/sanitize/fuzz_bundle $$(($(FUZZ_SEED) + 1)) $(FUZZ_COUNT); second=$$?; wait $$first && exit $$second
	build/sanitize/fuzz_graph $(FUZZ_SEED) $(FUZZ_COUNT) & first=$$!; \
	build/sanitize/fuzz_graph $$(($(FUZZ_SEED) + 1)) $(FUZZ_COUNT); second=$$?; wait $$first && exit $$second
	$(CMAKE) --build build/sanitize -j $(JOBS) --target fuzz_load
	build/sanitize/fuzz_load "$$($(ORT))" $(FUZZ_SEED) $(FUZZ_BUNDLES) build/small/*

runtime/web/node_modules: runtime/web/package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund --prefix runtime/web
	@touch $@

browser: install runtime/web/node_modules ## bundles in headless Chromium: the same tokens as Python; prints their profiles
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { echo "make browser needs chromium"; exit 1; }
	$(BIN)/python -m pytest -q tests/runtime/test_web.py tests/reporting/test_page.py

# Packed int8 bundles of the bundled models.
build/small: install
	for family in llama mamba2; do \
	  $(BIN)/edgeslim export examples/models/tiny-$$family -o $@/$$family --weights int8 --lowering kernel --force || exit 1; done

soak: build/small    ## 100,000 tokens over 1,000 sessions: memory flat; then under ASan and LeakSanitizer
	$(CMAKE) -S runtime/native -B build/native -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/native -j $(JOBS) --target soak
	build/native/soak "$$($(ORT))" $(SOAK_TOKENS) $(SOAK_SESSIONS) build/small/*
	$(CMAKE) -S runtime/native -B build/sanitize -DEDGESLIM_SANITIZE=ON -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/sanitize -j $(JOBS) --target soak
	ASAN_OPTIONS=detect_leaks=1 build/sanitize/soak "$$($(ORT))" $(SOAK_TOKENS) $(SOAK_SESSIONS) build/small/*

java: install        ## the Java binding in build/native, and its tests on this machine's JDK
	$(CMAKE) -S runtime/native -B build/native -DEDGESLIM_TESTS=ON
	$(CMAKE) --build build/native -j $(JOBS) --target edgeslim_jni
	$(BIN)/python -m pytest -q tests/runtime/test_java.py

# Not run by the authors: no NDK was at hand. The Gradle module in runtime/java makes an AAR of the same sources.
android:             ## libraries and edgeslim-bench for arm64-v8a in build/android: make android NDK=/path/to/android-ndk
	@test -f "$(NDK)/build/cmake/android.toolchain.cmake" || \
	  { echo "make android needs the Android NDK: make android NDK=/path/to/android-ndk (found none in '$(NDK)')"; exit 1; }
	$(CMAKE) -S runtime/native -B build/android --toolchain $(NDK)/build/cmake/android.toolchain.cmake \
	  -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-24 -DANDROID_STL=c++_static -DEDGESLIM_BENCH=ON
	$(CMAKE) --build build/android -j $(JOBS)

train: install       ## train the bundled models again: two that write, two that recall (about two hours)
	$(BIN)/python examples/train_tiny.py --arch llama
	$(BIN)/python examples/train_tiny.py --arch mamba2
	$(BIN)/python examples/train_recall.py --arch mamba2
	$(BIN)/python examples/train_recall.py --arch mamba

clean:               ## remove the environment and everything built
	rm -rf .venv build dist out
