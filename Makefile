# Everything works on a machine that has Python >= 3.11 and make; the rest goes into .venv.
# make PYTHON=python3.12 ... chooses another interpreter, make WORKERS=4 test runs tests in four processes.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt
READY := .venv/.ready
DEVELOPMENT := .venv/.ready-for-development
APT = apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=60

.PHONY: demo test test-fast test-long lint check results-check golden docs setup browser clean

demo: $(READY)  ## train on drawn street scenes, evaluate, draw; minutes on 2 CPU cores
	rm -rf runs/demo
	$(BIN)/python tools/train_seg.py --dataset synthetic --output runs/demo
	$(BIN)/python tools/eval_seg.py --checkpoint runs/demo
	$(BIN)/python datasets/prepare_synthetic.py --split test --count 4 --output runs/demo/photos
	$(BIN)/python tools/predict_seg.py --checkpoint runs/demo runs/demo/photos/images --output runs/demo/predictions
	@echo "Look at runs/demo/predictions/*_overlay.png, and open in a browser:"
	$(BIN)/python tools/report_seg.py runs/demo --overwrite

test: $(DEVELOPMENT)  ## all tests but the long ones, which check and CI run besides
	$(PYTEST) -m "not long"

test-fast: $(DEVELOPMENT)  ## the tests for daily work: no processes, no compilers
	$(PYTEST) -m "not slow and not long"

test-long: $(DEVELOPMENT)  ## the long tests alone: kills, clusters, compilers, browsers, examples
	$(PYTEST) -m long

results-check: $(READY)  ## measure the cheapest rows of docs/results.md again, and compare
	$(BIN)/python docs/results.py --check

golden: $(DEVELOPMENT)  ## rewrite the golden list of config keys, after a deliberate change
	$(BIN)/python tests/support/config_keys_file.py

lint: $(DEVELOPMENT)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEVELOPMENT)  ## the site, into build/site; any warning or broken link is an error
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html -d build/doctrees docs build/site
	@echo "Open build/site/index.html in a browser."

check: lint test test-long  ## all of these

setup: $(READY)  ## only the environment: what training, evaluation and prediction need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "resnest_seg needs Python >= 3.11, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(INSTALL) --editable .
	@touch $@

$(DEVELOPMENT): $(READY)
	$(INSTALL) --editable '.[dev]'
	@$(MAKE) --no-print-directory browser
	@touch $@

# Only where apt-get may be used without a password. What waits for the network has a time limit, what dpkg does has none.
browser:  ## Debian's chromium, for the tests in a browser, which are skipped without one
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	echo "installing chromium with apt-get, for the tests in a browser"; \
	test "$$(id -u)" = 0 && root= || root="sudo -n"; \
	{ timeout 120 $$root $(APT) update; \
	timeout 600 $$root $(APT) install --download-only --yes --no-install-recommends chromium && \
	$$root env DEBIAN_FRONTEND=noninteractive $(APT) install --yes --no-install-recommends chromium; } \
	</dev/null >/dev/null 2>&1 || echo "chromium cannot be installed here: the tests in a browser are skipped"

clean:  ## remove the environment and caches, never runs or data
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
