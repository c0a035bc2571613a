# make demo     train the course CNN on torchsmith's ops and on native PyTorch, side by side
# make test     the tests
# make bench    every op and model against native PyTorch (let nothing else run meanwhile)
# make readme   the generated tables of README.md and docs/gru.md; `make record` measures and records anew what it quotes
# make mutants  plants bugs in a copy, one at a time, and shows that the tests catch each (hours)
# make compat   one wheel, checked unrebuilt under other releases of torch (downloads several GB)
# make cuda-check  one wheel, checked under a CUDA build of torch: every op's CUDA kernel is there (no GPU; downloads several GB)
# make gpu      on a machine with a GPU, in PYTHON itself: build, contract tests, sanitizer, benchmarks, one record
# make clean    remove what was built; `make distclean` the environment too
#
# PYTHON=python3.12  the Python to make the environment with
# TORCH=torch        the torch to install, any requirement pip takes; one that is installed already is kept
# VENV=.venv         the environment
# TEST_ARGS=...      arguments for pytest
# RECORD=cpu-avx2    name of the record that `make record` keeps: cpu, or cpu-<machine> for another

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
TEST_ARGS ?=
RECORD ?= cpu
DEMO_EPOCHS ?= 20

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
SOURCES := $(shell find csrc buildtools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py')

.PHONY: demo test bench record readme mutants compat cuda-check gpu build clean distclean
.DELETE_ON_ERROR:

demo: build
	$(PY) -m torchsmith train cnn --data digits --epochs $(DEMO_EPOCHS) --compare --out runs/demo

test: build
	$(PY) -m pytest -n logical --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

bench: build
	$(PY) -m torchsmith bench --out runs/bench

record: bench
	mkdir -p bench/records
	cp runs/bench/bench.json bench/records/$(RECORD).json
	$(MAKE) readme

readme: build
	$(PY) -m torchsmith.bench.readme README.md --record bench/records/cpu.json
	$(PY) docs/side_by_side.py

mutants: build
	$(PY) tests/mutants.py

compat: build
	$(PY) tests/compat.py --python $(PYTHON)

gpu:
	$(PYTHON) bench/gpu.py

cuda-check: build
	$(PY) tests/cuda_check.py --python $(PYTHON)

build: $(VENV)/.built

$(VENV)/.environment:
	$(PYTHON) -m venv $(VENV)
	$(PY) -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" || $(PIP) install "$(TORCH)"
	$(PIP) install "setuptools>=77" "pybind11>=2.13" ninja
	@touch $@

# The first build of all comes with the editable install, which also fetches what the extras name.
$(VENV)/.installed: $(VENV)/.environment pyproject.toml setup.py
	$(PIP) install --no-build-isolation -e ".[test,bench,course]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(PY) setup.py -q build_ext --inplace
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .benchmarks
	rm -f pyext/*.so $(VENV)/.installed $(VENV)/.built

distclean: clean
	rm -rf $(VENV)
