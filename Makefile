PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers
SPEED := $(VENV)/speed
JOBS ?= 2
N ?= 12
# a worker goes through the suite from one end and takes over what another has left, so that neighbours share what they set up
PYTEST := -m pytest -n $(JOBS) --dist worksteal
APART := not speed and not grid and not null

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

# Other libraries in environments of their own: a torchvision whose compiled part does not fit torch breaks transformers for
# all who share it. Through the .pth file each sees what the product sees, so that only the rest is installed.
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
COMMA := ,
define apart
$(BIN)/python -m venv --clear --without-pip $(@D)
echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(@D)/bin/python $(PURELIB))/product.pth"
$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --constraint constraints.txt --no-build-isolation --editable ".[$(1)]"
touch $@
endef

$(PEERS)/installed: $(BIN)/pytest
	$(call apart,avalanche$(COMMA)eval)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --constraint constraints.txt --no-deps llamafactory trl

$(SPEED)/installed: $(BIN)/pytest
	$(call apart,speed-peers)

.PHONY: quickstart test test-long test-cpus peers package types reference accessible mutants grid null speed speed-peers speed-gpu style clean

quickstart: $(BIN)/cl-toolkit  ## compare five methods on three small tasks; minutes
	$(BIN)/cl-toolkit compare quickstart --jobs $(JOBS)
	@echo "open results/quickstart/report.html"

test: $(BIN)/pytest  ## style, and of every kind of test at least one; under ten minutes on two cores
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python $(PYTEST) -m "$(APART) and not long"

test-long: $(BIN)/pytest  ## the rest of the suite: the same for more strategies, models and launchers; minutes
	$(BIN)/python $(PYTEST) -m "$(APART) and long"

peers: $(PEERS)/installed  ## the tests against Avalanche, lm-evaluation-harness, TRL and LLaMA-Factory; the first time installs them
	$(PEERS)/bin/python $(PYTEST) tests/peers

test-cpus: $(BIN)/pytest  ## the whole suite as three kinds of processor would run it: without vectors, with AVX2, and this one's own
	for cpu in default avx2 ""; do \
	    echo "ATEN_CPU_CAPABILITY=$${cpu:-(native)}"; \
	    env $${cpu:+ATEN_CPU_CAPABILITY=$$cpu} $(BIN)/python $(PYTEST) -m "$(APART)" || exit 1; \
	done

package: $(BIN)/pytest  ## wheel and source distribution, built, installed and used away from the tree; a minute
	.ci/package $(BIN)/python

types: $(BIN)/pytest  ## mypy over an installed wheel; a minute
	.ci/types $(BIN)/python

reference: $(BIN)/pytest  ## the API reference as pages, in docs/reference
	$(BIN)/python docs/reference.py

AXE := build/axe-core/package/axe.min.js
$(AXE):
	mkdir -p build/axe-core
	cd build/axe-core && tar -xzf "$$(npm pack --silent axe-core@4.14.1)"

accessible: $(BIN)/pytest $(AXE)  ## the report's page in Chromium: axe-core, a phone's width, light and dark; needs npm and chromium
	$(BIN)/python -m pytest -rs tests/unit/test_accessible.py

mutants: $(BIN)/pytest  ## how many small faults the tests notice, a sample; N=all for all of them
	$(BIN)/python tests/mutants.py --number $(N) --jobs $(JOBS)

grid: $(BIN)/pytest  ## every strategy at every ZeRO stage in one and two processes, every pair both ways; many minutes
	$(BIN)/python -m pytest -s -m grid tests/engine tests/laws tests/unit/test_fixed.py

null: $(BIN)/pytest  ## how often the report claims what is not there, and finds what is; minutes
	$(BIN)/python -m pytest -s -m null tests/unit/test_null.py

speed: $(BIN)/pytest  ## timing ratios against bare loops, into docs/speed.md; wants an idle machine
	SPEED_RESULTS=docs/measured/speed-cpu.json $(BIN)/python -m pytest -s -m speed --ignore=tests/speed/peers tests/speed; \
	    missed=$$?; $(BIN)/python docs/speed.py && exit $$missed

speed-peers: $(SPEED)/installed  ## timing ratios against TRL, Avalanche and lm-eval, into docs/speed.md; the first time installs them
	SPEED_RESULTS=docs/measured/speed-peers.json $(SPEED)/bin/python -m pytest -s -m speed tests/speed/peers \
	    tests/speed/test_answers.py::test_against_lm_eval; missed=$$?; $(BIN)/python docs/speed.py && exit $$missed

speed-gpu: $(BIN)/pytest  ## on one GPU, beside a bare loop and TRL where it is installed, into docs/speed.md; minutes
	PYTHONPATH=tests/support:tests/speed $(BIN)/python tests/speed/gpu/bench.py --out docs/measured/speed-gpu.json $(BENCH)
	PYTHONPATH=tests/support $(BIN)/python tests/speed/gpu/whole.py --out docs/measured/whole-gpu.json $(BENCH)
	$(BIN)/python docs/speed.py

style: $(BIN)/pytest  ## put the code into shape
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
