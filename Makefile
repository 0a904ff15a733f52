# `make` lists the targets.  Each sets up what it needs in .venv (tools/environment.py).
# TORCH=yes|cpu|no says which PyTorch to install; PYTHON=... names the Python to start from.

PYTHON ?= python3
TORCH ?= yes
VENV := .venv/bin
SETUP = $(PYTHON) tools/environment.py
TIMED = $(VENV)/python tools/timed.py
BUILD := _build
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# The matrices here are small: more threads make them slower, most of all in parallel tests.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help book lab slides pdf release test quick test-repeat bench maml gpu clean

help: ## list the targets
	@echo "Learning to Regularize. Usage: make TARGET [TORCH=yes|cpu|no] [PYTHON=python3]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

book: ## build the book: _build/html/index.html
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "notebooks" $(VENV)/python tools/execute.py
	@$(TIMED) "book" $(VENV)/jupyter-book build --all -W -n --keep-going -q .
	@test -f $(BUILD)/html/index.html
	@echo "The book is in $(BUILD)/html/index.html"

lab: ## open the notebooks in JupyterLab
	@$(SETUP) lab --torch $(TORCH)
	@env -u OMP_NUM_THREADS -u OPENBLAS_NUM_THREADS $(VENV)/jupyter lab --notebook-dir=.

slides: ## build the decks: _build/slides/index.html
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "slides" $(VENV)/sphinx-build -q -W -n --keep-going -b revealjs -d $(BUILD)/.slides \
		book/slides $(BUILD)/slides
	@echo "The decks are in $(BUILD)/slides/index.html; add ?print-pdf to a deck's address to print it"

pdf: ## print the book without LaTeX: _build/pdf/learning-to-regularize.pdf
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "pdf" $(VENV)/python tools/pdf.py $(BUILD)/pdf/learning-to-regularize.pdf

release: ## make the students' homework of all chapters: _build/homework/release/
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "release" $(VENV)/course release exercises --out $(BUILD)/homework
	@echo "Hand out the folders in $(BUILD)/homework/release; the rest of $(BUILD)/homework stays with you"

test: ## run everything that needs no GPU: tests, notebooks, book, slides
	@$(SETUP) all --torch $(TORCH)
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(TIMED) "book, slides" $(VENV)/python -m pytest -n 2 -m build --durations=2
	@$(TIMED) "tests" $(VENV)/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder -m "not build" --durations=20
	@PYTHONPATH=tools $(TIMED) "notebooks" $(VENV)/python -m pytest -p kernel_sockets -n 2 \
		--dist loadfile --nbval --nbval-cell-timeout=120 notebooks exercises

quick: ## the inner loop: fast tests, under 60 s
	@$(SETUP) all --torch $(TORCH)
	@$(TIMED) "quick tests" $(VENV)/python -m pytest -q -n 2 -m "not slow"

test-repeat: ## run all notebooks twice and compare the runs with what is stored
	@$(SETUP) all --torch $(TORCH)
	@$(TIMED) "first run" $(VENV)/python -m pytest -q --nbval --nbval-cell-timeout=120 notebooks exercises
	@$(TIMED) "second run" $(VENV)/python -m pytest -q --nbval --nbval-cell-timeout=120 notebooks exercises

bench: ## measure the library against its peers: _build/bench.json
	@$(SETUP) bench --torch $(TORCH)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
		$(TIMED) "bench" $(VENV)/python tests/benchmarks/run.py $(BUILD)/bench.json

maml: ## train MAML on sinusoids five times, and compare it with the reference
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "maml" $(VENV)/python tests/benchmarks/maml_reference.py

gpu: ## measure on a CUDA device: notebooks/gpu_results.json
	@$(SETUP) book --torch $(TORCH)
	@$(TIMED) "gpu" $(VENV)/python tests/benchmarks/gpu.py notebooks/gpu_results.json

clean: ## remove what was built; .venv stays (rm -r .venv removes it)
	@rm -rf $(BUILD) *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
