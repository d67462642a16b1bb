# Everything runs from .venv, which `make install` builds from pyproject.toml and constraints.txt.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
NATIVE := $(shell find runtime/native -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check format bench train kill-resume memory optimum bench-partners clean

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

train: install       ## train the bundled models again (about two hours)
	$(BIN)/python examples/train_tiny.py --arch llama
	$(BIN)/python examples/train_tiny.py --arch mamba2

clean:               ## remove the environment and everything built
	rm -rf .venv build dist out
