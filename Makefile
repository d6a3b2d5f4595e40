# `make demo` and `make test` are all a fresh clone needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO ?= demo
# A test has one thread; those that start several ranks follow one another (tests/conftest.py).
TWO_AT_ONCE := -n 2 --dist loadscope --durations 20
# Two ranks share a laptop's cores: one thread each.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE = 1
# First on the path: DeepSpeed builds its CPU operators once and caches them, but another ninja would build them again.
export PATH := $(CURDIR)/$(BIN):$(PATH)
ACCELERATOR := DS_ACCELERATOR=$${DS_ACCELERATOR:-cpu}

.PHONY: install demo test test-slow test-lowest lint clean

install: $(VENV)/.installed

# torch before everything that asks for it, so that a build for this machine is chosen once; deepspeed compiles against
# it and therefore cannot use an isolated build environment.
$(VENV)/.installed: constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel ninja packaging py-cpuinfo numpy
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e ".[annotate,dance,evaluate,export,quantize,sample,dev]"
	$(BIN)/python -m stagecoach.trainer.operators
	touch $@

demo: install
	$(ACCELERATOR) bash launch/demo.sh $(DEMO)

test: install
	$(BIN)/python -m pytest $(TWO_AT_ONCE) -m "not slow"

test-slow: install
	$(BIN)/python -m pytest $(TWO_AT_ONCE) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos

# Everything at the lower bounds of setup.py, in an environment of its own (see docs/dependencies.md).
test-lowest:
	bash .ci/test_lowest.sh .venv-lowest

clean:
	rm -rf $(DEMO) .pytest_cache .ruff_cache .mypy_cache
