# Everything starts here: `make demo` for the whole loop, `make test` for the suite.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test slow unit check format clean

help:
	@echo "make demo    install, then run the whole loop on the shipped sample (runs/demo/report.html)"
	@echo "make test    install, then run the whole test suite"
	@echo "make slow    install, then run the tests that take minutes each"
	@echo "make unit    the tests that need neither Ray nor an engine"
	@echo "make check   ruff, formatting and mypy"
	@echo "make setup   install only; PYTHON=python3.12 chooses another interpreter"

setup: $(STAMP)

# Installing again is skipped until what is installed changes.
$(STAMP): pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	@touch $@

demo: $(STAMP)
	$(BIN)/wildreward demo

test: $(STAMP)
	$(BIN)/python -m pytest tests/unit -n 2
# Most of their time these wait, for Ray and for engines that load.
	$(BIN)/python -m pytest tests/ray -n 2 --dist loadfile

slow: $(STAMP)
	$(BIN)/python -m pytest tests -m slow

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit -n 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
