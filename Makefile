# On a machine with nothing but Python: `make demo`, `make test`.
# Everything lands in .venv (and .venv-triton36); the second run starts at once.

PYTHON ?= python3
TORCH  ?= torch==2.13.0

VENV   := .venv
BIN    := $(VENV)/bin
T36    := .venv-triton36

export GQC_TRITON36_PYTHON := $(CURDIR)/$(T36)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lit pytest fuzz check format types clean

help:
	@echo "make demo     compile two real models, compare, plot (examples/quickstart.py)"
	@echo "make test     every test: lit, then pytest"
	@echo "make lit      FileCheck tests only         make pytest  Python tests only"
	@echo "make fuzz     random models and damaged dumps, from SEED on, COUNT of them"
	@echo "make check    ruff, format, pyright        make format  rewrite with ruff"
	@echo "make clean    remove both environments and what was built"

demo: $(VENV)/.ready
	$(BIN)/python examples/quickstart.py

test: lit pytest

lit: $(VENV)/.ready
	$(BIN)/lit -s --no-progress-bar tests/lit examples

# Two processes with two threads each would wait for one another on two cores.
pytest: $(VENV)/.ready $(T36)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.ready-dev types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# Random models, every pass interpreted, and damaged dumps: `make fuzz SEED=1000 COUNT=10000`.
SEED  ?= 0
COUNT ?= 300

fuzz: $(VENV)/.ready
	$(BIN)/python tests/fuzz/mutations.py $(SEED) $(COUNT)
	OMP_NUM_THREADS=1 SEED=$(SEED) COUNT=$(COUNT) $(BIN)/pytest -n 2 -m fuzz tests/fuzz

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# torch comes first and pinned: left to the resolver, `torch>=2.11` means whatever is newest.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gqc needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) and gqc into $(VENV) (some minutes the first time)"
	@$(BIN)/pip install -qq "$(TORCH)"
	@$(BIN)/pip install -qq --editable ".[test,demo]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(BIN)/pip install -qq --editable ".[dev]"
	@touch $@

# Oldest Triton we promise: kernels are compiled there too, by a script that needs no torch.
$(T36)/.ready:
	@test -x $(T36)/bin/python || $(PYTHON) -m venv $(T36)
	@echo "installing triton 3.6 into $(T36)"
	@$(T36)/bin/pip install -qq "triton==3.6.*" numpy
	@touch $@

# The namespace as installed, in links to files: pyright enters no linked folder.
types:
	@rm -rf build/types && mkdir -p build/types
	@cp -rs $(CURDIR)/gqc build/types/gqc
	@cp -rs $(CURDIR)/dialects $(CURDIR)/passes $(CURDIR)/codegen build/types/gqc/

clean:
	rm -rf $(VENV) $(T36) build *.egg-info
