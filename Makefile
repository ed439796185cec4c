# Everything runs from .venv, which needs nothing but Python 3.10 or later and a C compiler.
#
#   make demo       quantize the bundled model and compare it with the float one
#   make test       the whole test suite        (one file: make test TESTS=tests/test_model.py)
#   make test-train tests of what needs torch, which it installs; TORCH=… says which (plain wheels for x86 bring CUDA along)
#   make lint       ruff
#   make types      mypy
#   make portable   kernels and models on the plain C kernels alone
#   make aarch64    kernels for AArch64 under an emulator, if gcc-aarch64-linux-gnu and qemu-user are there
#   make build      compile, and install into .venv so that edits to Python files take effect at once
#
# PYTHON=python3.12 chooses the interpreter of a new .venv; VENV=dir another place for it.

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
PYTEST_FLAGS ?= -n 2
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := setup.py pyproject.toml $(wildcard qruntime/*.p[xy][xi] qruntime/onnx_io/*.pyx) $(shell find qruntime/kernels -name '*.[ch]')

.PHONY: demo test test-train lint types portable aarch64 build clean

demo: build
	$(BIN)/python examples/shakespeare/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_FLAGS) $(TESTS)

test-train: $(VENV)/.train
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) $(shell grep -lr 'importorskip."torch"' tests --include='*.py')

portable: $(VENV)/.test
	QRUNTIME_ISA=portable $(BIN)/python -m pytest $(PYTEST_FLAGS) tests/kernels tests/test_model.py tests/test_invariance.py tests/test_shakespeare.py

aarch64: $(VENV)/.test
	$(BIN)/python -m pytest -rs -k aarch64 tests/kernels/test_rungs.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(VENV)/.lint $(VENV)/.build
	$(BIN)/mypy

build: $(VENV)/.build

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10; choose another with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'setuptools>=77' 'cython>=3.0.10' 'numpy>=2.0'
	@touch $@

$(VENV)/.build: $(VENV)/.venv $(SOURCES)
	$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.build
	$(PIP) install --no-build-isolation -e '.[test]'
	@touch $@

$(VENV)/.train: $(VENV)/.test
	$(PIP) install $(TORCH) onnxscript
	@touch $@

$(VENV)/.lint: $(VENV)/.venv pyproject.toml
	$(PIP) install 'ruff>=0.6' 'mypy>=1.8'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info qruntime/_kernels.c qruntime/_kernels*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find qruntime tests tools -name __pycache__ -prune -exec rm -rf {} +
