# Every target sets up what it needs: a .venv with the package, its extras and a torch for this machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Without a GPU a CPU build is enough; on Linux set PIP_EXTRA_INDEX_URL to an index that has one.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
# Models and data are local: never wait for a network.
export HF_HUB_OFFLINE = 1
# Bytecode is written by the first import, of the modules that are used, and not for all at install.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo check docs test test-full gpu-pack clean

demo: $(INSTALLED)  ## the whole recipe, small but real; ends with a table
	$(BIN)/python -m training.run training/recipes/demo.yaml

check: $(INSTALLED)  ## lint, spelling, types, floors, imports, documentation, the wheel and what is in it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	$(BIN)/python tests/import_all.py
	$(MAKE) --no-print-directory docs
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	$(BIN)/python tests/list_wheel.py dist/*.whl

docs: $(INSTALLED)  ## the documentation, into out/docs; a warning is an error
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs out/docs

# A process on each of two cores: the tests' models are too small to gain from threads.
WORKERS ?= 2
test: $(INSTALLED)  ## the tests, in WORKERS processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not full" --numprocesses $(WORKERS) --dist worksteal

test-full: $(INSTALLED)  ## the long ones too
	$(BIN)/pytest

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

gpu-pack: $(INSTALLED)  ## what a GPU's machine without network lacks for eval/gpu/run.sh
	PYTHON=$(BIN)/python bash eval/gpu/pack.sh

clean:  ## results, builds and caches; the .venv stays
	rm -rf out build dist gpu-pack *.egg-info .mypy_cache .pytest_cache .ruff_cache
