# `make install` once (the other targets do it by themselves), then `make study`, `make lab` or `make test`.
# Works with GNU Make 3.81 and bash 3.2, so with what macOS ships.
PYTHON ?= python3
STUDY ?= params/studies/quickstart.yaml
WORKERS ?= 2
TORCH ?= default
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider -n $(WORKERS) --dist loadscope
NORMALISE := $(BIN)/python tools/normalise_notebooks.py
# Tests and reference outputs run on one thread per process: reproducible, and side by side without crowding.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help study lab test lint install refresh lock clean

help:
	@echo 'make study    run $(STUDY)'
	@echo '              another: make study STUDY=params/studies/NAME.yaml SET="train.steps=200 data.path=/my/books"'
	@echo 'make lab      open the notebooks in JupyterLab'
	@echo 'make test     lint, types, unit tests, and every notebook executed and compared'
	@echo 'make lint     only the first of these: ruff, mypy, the form of the notebooks'
	@echo 'make install  build .venv from requirements.lock (CPU-only PyTorch: make install TORCH=cpu)'
	@echo 'make refresh  execute the notebooks again and store their outputs as the new references'
	@echo 'make lock     renew requirements.lock from pyproject.toml'
	@echo 'make clean    delete .venv and caches; outputs/ stays'

study: $(INSTALLED)
	$(BIN)/gptlib study $(STUDY) $(addprefix --set ,$(SET)) $(addprefix --profile ,$(PROFILE))

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

test: lint
	@echo '=== unit tests'
	$(ONE_THREAD) $(PYTEST)
	@echo '=== notebooks: executed and compared with their stored outputs'
	$(ONE_THREAD) $(PYTEST) --nbval --nbval-cell-timeout=300 notebooks

lint: $(INSTALLED)
	@echo '=== style'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo '=== types'
	$(BIN)/mypy
	@echo '=== form of the notebooks'
	$(NORMALISE) --check notebooks/*.ipynb

refresh: $(INSTALLED)
	$(ONE_THREAD) $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=300 notebooks/*.ipynb
	$(NORMALISE) notebooks/*.ipynb

install: $(INSTALLED)

# The stamp is written last: an installation that broke off is taken up again by the next call.
$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@case '$(TORCH)' in default|cpu) ;; *) echo "TORCH=$(TORCH): write TORCH=cpu, or leave it out" >&2; exit 1;; esac
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	$(PIP) install --no-deps --index-url https://download.pytorch.org/whl/cpu "$$(grep '^torch==' requirements.lock)"
endif
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps -e .
	@touch $@

# In an environment of its own, so that nothing installed by hand slips in. torch keeps its pin.
lock:
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install ".[lab,dev]" "$$(grep '^torch==' requirements.lock)"
	.venv/lock/bin/python tools/lock.py > .venv/requirements.lock && mv .venv/requirements.lock requirements.lock
	rm -rf .venv/lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
	find gptlib tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
