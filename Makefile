# `make help` lists what there is. Everything runs in .venv, which is made when first needed.

PYTHON ?= python3
PYTEST_ARGS ?=
EVAL_ARGS ?=
WORK ?= tmp/demo-model
OUT ?= workers/models/demo/weights
PROMPT ?= a red circle moving right
BIN := .venv/bin
STAMP := .venv/.installed
WITHOUT_SERVERS := not kafka and not s3 and not torch and not slow and not gpu

# A run here starts hundreds of workers: each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test check lint format bench bench-core bench-footprint bench-relay bench-sampler bench-makespan bench-fairness kill-demo chaos chaos-planted soak simulate replay \
  shrink mutants train-demo-model eval-demo-model lock clean

help:
	@echo 'make demo             one video from a prompt, on this machine:  make demo PROMPT="a red circle moving right"'
	@echo 'make test             every test; Apache Kafka too where Java 17 and Maven are (PYTEST_ARGS="-x -k name")'
	@echo 'make check            format, lint, types and the tests that need no server: under a minute'
	@echo 'make format           lets ruff rewrite what check would complain of'
	@echo 'make bench            bench-core (pure core), bench-footprint (memory, start-up), -sampler, -fairness, -relay'
	@echo 'make bench-sampler    jobs a second and latencies of continuous batching, beside static batches and diffusers;'
	@echo '                      then the whole stage on Apache Kafka beside a bare loop (STAGE_ARGS)'
	@echo 'make bench-makespan   mixed lengths on several samplers, simulated, beside the optimum'
	@echo 'make bench-fairness   who waits when a tenant floods, in simulation, beside first come, first served'
	@echo '                      FAIRNESS_ARGS: --plots FOLDER (PNG), --sweep (clusters and defaults), --kafka (Apache Kafka)'
	@echo 'make bench-relay      CPU time a record of each stage beside a bare Kafka loop (Java 17 and Maven, ten minutes)'
	@echo 'make kill-demo        SIGKILL to each worker in turn, ten rounds, in the middle of 200 real jobs'
	@echo 'make chaos            the fault table on three Apache Kafka brokers (CHAOS_ARGS="--seed 2 F1"; Java 17 and Maven)'
	@echo 'make chaos-planted    seven bugs planted into real workers, and which check of the fault suite catches each (PLANTED_ARGS=BUG)'
	@echo 'make soak             hours: 100,000 simulated schedules, 20 seeds of 2,000 jobs under faults, 20,000 calm jobs; resumable'
	@echo 'make train-demo-model the demo model anew: 80 min on two cores, resumable (WORK=folder, OUT=folder)'
	@echo 'make eval-demo-model  every prompt through the pipeline, read back from its MP4, held against the goals'
	@echo 'make venv             .venv with the locked packages; everything above makes it by itself'
	@echo 'make simulate         seeded schedules of faults on an in-memory log:  make simulate N=5000 [SEED=1]'
	@echo 'make replay SEED=7    one of them with its trace;  make shrink SEED=7  finds the smallest part that fails alike'
	@echo 'make mutants          plants bugs in copies of the tree; each must be caught'
	@echo 'make lock             resolves .ci/constraints.txt anew after a change of pyproject.toml (UPGRADE=1: newest versions)'
	@echo 'make clean            removes .venv and caches'
	@echo
	@echo 'Python 3.11, 3.12 or 3.13:  make venv PYTHON=/path/to/python3'
	@echo 'Size: torch with its CUDA libraries takes 4.7 GB in .venv, 2.5 GB of download. CPU only takes a fraction:'
	@echo '  make venv TORCH_INDEX=URL_OF_AN_INDEX_OF_CPU_BUILDS   (hashes are checked for all but torch then)'

venv: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt .ci/uv.txt .ci/install
	@echo 'Installing into .venv (torch is large: 2.5 GB to download the first time)...'
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' .ci/install .venv all
	@touch $@

demo: $(STAMP)
	@$(BIN)/reel demo "$(PROMPT)"

test: $(STAMP)
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

check: lint
	$(BIN)/python -m pytest -q -m "$(WITHOUT_SERVERS)" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All run, whether or not those before meet their goals.
bench: $(STAMP)
	@status=0; for each in bench-core bench-footprint bench-sampler bench-makespan bench-fairness bench-relay; do \
	  $(MAKE) --no-print-directory $$each || status=1; done; exit $$status

bench-core: $(STAMP)
	$(BIN)/python -m tests.bench.core

bench-footprint: $(STAMP)
	$(BIN)/python -m tests.bench.footprint

SAMPLER_ARGS ?=
STAGE_ARGS ?=

bench-sampler: $(STAMP)
	@status=0; $(BIN)/python -m tests.bench.sampler $(SAMPLER_ARGS) || status=1; \
	  $(BIN)/python -m tests.bench.sampler_stage $(STAGE_ARGS) || status=1; exit $$status

bench-relay: $(STAMP)
	$(BIN)/python -m tests.bench.relay

N ?= 5000
SEED ?= 1

simulate: $(STAMP)
	$(BIN)/python -m tests.simulation run $(N) --seed $(SEED)

replay shrink: $(STAMP)
	@$(BIN)/python -m tests.simulation $@ $(SEED)

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

# Neither file holds an address: any index that serves the same files will do.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-emit-index-url --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

train-demo-model: $(STAMP)
	$(BIN)/python -m workers.models.demo --work '$(WORK)' --out '$(OUT)'

eval-demo-model: $(STAMP)
	$(BIN)/python -m tests.bench.demo_model $(EVAL_ARGS)

bench-makespan: $(STAMP)
	$(BIN)/python -m tests.bench.makespan

FAIRNESS_ARGS ?=

bench-fairness: $(STAMP)
	$(BIN)/python -m tests.bench.fairness $(FAIRNESS_ARGS)

kill-demo: $(STAMP)
	$(BIN)/python -m tests.bench.kill_demo

CHAOS_ARGS ?=

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

PLANTED_ARGS ?=

chaos-planted: $(STAMP)
	$(BIN)/python -m tests.chaos.planted $(PLANTED_ARGS)

soak: $(STAMP)
	$(BIN)/python -m tests.simulation soak 100000 tmp/soak/schedules.csv
	$(BIN)/python -m tests.chaos.soak $(SOAK_ARGS)

lock: .venv/bin/uv
	$(COMPILE) --all-extras pyproject.toml -o .ci/constraints.txt
	echo 'uv==0.13.9' | $(COMPILE) - -o .ci/uv.txt

.venv/bin/uv:
	@$(MAKE) --no-print-directory venv

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
