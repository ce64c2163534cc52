# Every target works from a fresh clone: .venv is made and filled when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# pip compiles nothing: what is imported is compiled at its first import, and kept
unexport PYTHONDONTWRITEBYTECODE

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

install: $(READY)  ## make .venv and install keepset with everything that tests need

demo: $(READY)     ## run the main job on real images (10 to 14 minutes) and print where the reports are
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(READY) browser  ## run all tests (9 to 14 minutes on two cores, after the install)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=20 -m "not slow and not gpu" tests

test-slow: $(READY)  ## run the slow campaigns: calibration at full size, kill tests on every event
	$(BIN)/python -m pytest -n 2 --durations=20 -m slow tests

browser: $(READY)  ## install Chromium and axe-core for the report's tests, where they are missing
	bash tests/manifests/browser/setup.sh

bench: $(READY)    ## run every benchmark; each prints its ratios
	for file in tests/benchmarks/bench_*.py; do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file || exit 1; done

update-golden: $(READY)  ## after raising a stage's version: write the golden digests anew
	KEEPSET_GOLDEN=write $(BIN)/python -m pytest tests/contracts/test_stage_law.py

lint: $(READY)     ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:             ## remove what the demo and the tests made
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install demo test test-slow browser bench update-golden lint clean
