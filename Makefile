# The two commands to know are `make run` and `make test`; both set up .venv first, under the pins of constraints.txt.

# Any Python >= 3.11 will do: `make PYTHON=/path/to/python3.12 ...` picks another than the first one found here.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Flags for the program behind a target, as in: make run ARGS="--preset smoke --num-seeds 2"
ARGS ?=

define need-python
@if [ -z "$(PYTHON)" ]; then echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
endef

.PHONY: run test test-all test-newest lint docs bench
.DELETE_ON_ERROR:

# The main job: its defaults are `--dataset replay --preset tuned`.
run: $(INSTALLED)
	$(BIN)/python -m experiments.mamujoco $(ARGS)

# Compilation is most of the quick tests' time, and takes half as long without optimisations and fusions. Optimised
# programs, as runs have them, are tested by `make test-all`.
test: $(INSTALLED)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false" $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/mkdocs build --quiet --strict

docs: $(INSTALLED)
	$(BIN)/mkdocs build --quiet --strict

# The quick tests with the newest releases of all dependencies, in an environment of its own without constraints.txt.
test-newest:
	$(need-python)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--editable '.[dev]'
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m experiments.benchmark $(ARGS)

# The stamp is written last and removed first: an interrupted installation starts again from an empty environment.
$(INSTALLED): pyproject.toml constraints.txt
	$(need-python)
	@if [ -f $@ ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then rm -f $@; else \
		echo "setting up $(VENV) with $(PYTHON), about three minutes"; $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@
