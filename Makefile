# `make demo` runs the main job, `make test` the tests; all targets set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test pytest lint wheel clean

help:
	@echo "make demo    train, prune and report on handwritten digits (1 minute)"
	@echo "make test    linters, type checks, tests, notebooks"
	@echo "make lint    linters and type checks alone"
	@echo "make wheel   a wheel and a source archive, in dist/"
	@echo "make clean   remove .venv, runs/, build/ and dist/"

demo: $(READY)
	$(BIN)/branchprune run configs/digits.yaml --overwrite true

test: $(READY)
	$(MAKE) --jobs=2 lint pytest

# One thread a process: two that use both cores each slow each other down. One process more than
# two cores have, since some tests wait for what others compute.
pytest: export OMP_NUM_THREADS = 1
# None of the notebooks asks how well a training ends.
pytest: export EPOCHS = 1
pytest: export STEPS = 40
pytest: export IMAGES = 40
pytest: $(READY)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --nbmake --nbmake-timeout=300 notebooks tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true  # on all cores
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist
