# Every target sets up what it needs in .venv: Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := PYTHONSAFEPATH=1 $(BIN)/python -m
BENCHMARKS := selection scale data training sampling encoders
# Two or three files at a time in the order of tests/conftest.py, each test on one thread; modules are compiled once.
WORKERS := 2
# Of `make gpu`: cuda, or pretended where there is no GPU; full, or tiny, whose figures mean nothing.
DEVICE := cuda
SCALE := full
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-fast gpu-test lint format docs bench gpu clean

help:
	@echo "make demo        run the main job on embedded data: two minutes, then open runs/digits/report.html"
	@echo "make test        run all tests (ENTROLOOP_LONG=1 make test: the long ones as well)"
	@echo "make test-fast   run the tests without those of whole loops, many processes or a SLURM cluster"
	@echo "make gpu-test    run the tests that need a CUDA device, and say where there is none"
	@echo "make lint        check with ruff, ruff format and mypy"
	@echo "make format      fix what ruff can fix"
	@echo "make docs        write docs/modules.md and docs/configuration.md again"
	@echo "make bench       run the benchmarks"
	@echo "make gpu         check and measure one GPU in 8 minutes: runs/gpu/results.jsonl"
	@echo "                 (DEVICE=pretended SCALE=tiny: try the script without a GPU)"
	@echo "make clean       remove .venv, builds and caches"

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entroloop needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,cpu,deepspeed]'
	touch $@

demo: $(STAMP)
	$(RUN) entroloop.launcher demo

# Three for two cores: the tests of SLURM and of ranks that hang mostly wait.
test: WORKERS := 3
test: $(STAMP)
	sh tests/system_packages.sh
	$(PYTEST)

test-fast: $(STAMP)
	$(PYTEST) -m 'not slow'

gpu-test: $(STAMP)
	ENTROLOOP_LONG=1 $(BIN)/python -m pytest -m gpu $(wildcard tests/pretended/device_*.py)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p entroloop
	$(BIN)/mypy tests benchmarks docs/generate.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py --device $(DEVICE) --scale $(SCALE)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
