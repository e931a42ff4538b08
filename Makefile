PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

# torch 2.13.0 by itself first: that version, and nothing newer, admits a CPU build where one is at hand
$(BIN)/cl-toolkit: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable .
	touch $@

$(BIN)/pytest: $(BIN)/cl-toolkit
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

.PHONY: quickstart test speed style clean

quickstart: $(BIN)/cl-toolkit  ## compare five methods on four small tasks; minutes
	$(BIN)/cl-toolkit compare quickstart --jobs $(JOBS)
	@echo "open results/quickstart/report.html"

test: $(BIN)/pytest  ## the whole suite, without timing
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) -m "not speed"

speed: $(BIN)/pytest  ## timing ratios; wants an idle machine
	$(BIN)/python -m pytest -s -m speed tests/speed

style: $(BIN)/pytest  ## put the code into shape
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
