# qwen-megatron: `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# An active virtual environment is used as it is; otherwise ours stands in .venv.
ENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PY := $(ENV)/bin/python
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# TORCH=cpu installs the pinned CPU build; TORCH=preinstalled keeps the torch that is there (CUDA, a container).
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
STAMP := $(ENV)/.qwen-megatron-setup
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/kernels/*.cpp csrc/kernels/*.h)
CODE := data_tools qwen_megatron tests examples benchmarks setup.py

# Threads per process are set by the launcher as cores / ranks; torchrun's own default of 1 is announced on every start.
export OMP_NUM_THREADS ?= 1

.PHONY: docs help setup demo demo-align test test-faults test-align test-gpu test-wheel check format clean bench-data bench-gpu bench-train bench-plan bench-save bench-augment bench-convert bench-infer bench-context bench-align
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## create the environment and build the C++ extension (TORCH=preinstalled keeps your torch)

$(PY):
	@command -v g++ >/dev/null || { echo "setup: g++ not found; install a C++17 compiler (Debian, Ubuntu: apt-get install g++)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { echo "setup: $(PYTHON) is older than Python 3.11; say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(if $(filter preinstalled,$(TORCH)),--system-site-packages) $(ENV)

$(STAMP): requirements/cpu.txt requirements/dev.txt setup.py pyproject.toml $(SOURCES) | $(PY)
ifeq ($(TORCH),preinstalled)
	@$(PY) -c 'import torch; print("setup: keeping torch", torch.__version__)'
	grep -v '^torch==' requirements/cpu.txt > $(ENV)/requirements-without-torch.txt
	$(PY) -m pip install --quiet -r $(ENV)/requirements-without-torch.txt -r requirements/dev.txt
else
	@echo "setup: installing torch, the CPU build (200 MB)"
	@# The index pip is set up with first (mirrors, local wheels), then PyTorch's own index of CPU builds.
	@$(PY) -m pip install --quiet "$$(grep '^torch==' requirements/cpu.txt)" 2>/dev/null \
	  || $(PY) -m pip install --quiet --extra-index-url $(TORCH_INDEX) "$$(grep '^torch==' requirements/cpu.txt)"
	@echo "setup: installing the other $$(grep -c == requirements/cpu.txt) pinned packages and the development tools"
	@$(PY) -m pip install --quiet -r requirements/cpu.txt -r requirements/dev.txt
endif
	@echo "setup: building the C++ extensions"
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## raw text to a trained, verified Hugging Face model in about five minutes
	$(PY) examples/demo.py

demo-align: setup ## from the model of `make demo` to an aligned one: dialogues, reward model, PPO, in about ten minutes
	$(PY) examples/demo_align.py

# One worker has the tests that need the pool of ranks, the other launches and the rest (tests/conftest.py). WORKERS=0 runs one test after the other in this process.
WORKERS ?= 2

# Processes by the hundred import the same sources: what is compiled is kept, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE =
test: setup ## the whole test suite on two cores; WORKERS=0 for one test after the other
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-faults: setup ## kills and other faults at many points, up to half an hour
	$(PY) -m pytest -m faults -s

test-align: setup ## PPO with three seeds and two prices of divergence, 64 dialogues by heart, up to half an hour
	$(PY) -m pytest -m align -s

test-gpu: setup ## the tests that need an NVIDIA GPU, against the CPU and fp64 oracles
	$(PY) -m pytest -m gpu -s

test-wheel: setup ## build the wheel, install it into an empty environment, run the tour from another folder
	examples/wheel_tour.sh $(PY)

bench-train: setup ## speed and memory of a training step against transformers, and start, into docs/benchmarks.md
	$(PY) benchmarks/bench_train.py --write
	$(PY) benchmarks/bench_start.py --write

bench-plan: setup ## layouts by arithmetic against dry runs and measured steps, into docs/benchmarks.md
	$(PY) benchmarks/bench_plan.py --write

bench-gpu: setup ## a training step on one GPU against transformers and the floor, into docs/benchmarks.md
	$(PY) benchmarks/bench_gpu.py --write

bench-data: setup ## speed of text kernels and tokenization against installed peers, into docs/benchmarks.md
	$(PY) benchmarks/bench_data.py --write
	$(PY) benchmarks/bench_tokenize.py --write
	$(PY) benchmarks/bench_encoder.py --write

# TEXTS="zh=zh.jsonl en=en/*.jsonl ...": what a vocabulary is learned from, and measured on.
bench-augment: setup ## compression and time of a continued vocabulary against one from nothing, on your TEXTS
	$(PY) benchmarks/bench_augment.py --write $(TEXTS)

bench-convert: setup ## conversion of random models: time, memory, the check by layers, into docs/benchmarks.md
	$(PY) benchmarks/bench_conversion.py --write

bench-save: setup ## waiting time of asynchronous and synchronous saves, into docs/benchmarks.md
	$(PY) benchmarks/bench_save.py --write

bench-infer: setup ## speed of generation against transformers, into docs/benchmarks.md
	$(PY) benchmarks/bench_infer.py --write
	$(PY) benchmarks/bench_evaluate.py --write

bench-context: setup ## perplexity beyond the trained context (the paper's Table 3 in little), into docs/benchmarks.md
	$(PY) benchmarks/bench_context.py --write

PPO ?= demo/align/ppo

bench-align: setup ## reward models on your PAIRS, fine-tuning against the package trl in the folder TRL, your PPO run by part
	$(PY) benchmarks/bench_align.py --write --pairs $(PAIRS)
	$(PY) benchmarks/bench_sft.py --write --trl $(TRL)
	$(PY) benchmarks/bench_ppo.py --write $(PPO)

docs: setup ## the documentation as a site in build/site; any warning is an error
	$(PY) -m pip install --quiet -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

check: setup ## formatting, lint, types, import order
	$(ENV)/bin/ruff format --check $(CODE)
	$(ENV)/bin/ruff check $(CODE)
	$(ENV)/bin/mypy
	$(PY) -m pytest -q tests/test_import_order.py tests/test_source_rules.py tests/data_tools/test_layers.py tests/test_docstrings.py

format: setup ## rewrite the code in the house format
	$(ENV)/bin/ruff format $(CODE)
	$(ENV)/bin/ruff check --fix $(CODE)

clean: ## remove the environment, builds and caches (not your runs)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data_tools/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
