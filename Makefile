# make run     a page of images side by side (a minute), then the main job: learn a shortcut, compare, report (5 more)
# make test    the test suite
# Both create .venv first when it is missing or older than what it is made from.

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
KNOWN := fd_cifarnet of 5,000 images, measured on an H200 in experiments/007-cifar10-deep (lower is better): \
	vanilla 32 has 0.262, taylorseer 32,10 0.250, shortcut_bundled 32,8 0.333.

.PHONY: run test test-slow test-gpu browser lint format clean help

help:
	@grep -E '^# make' Makefile | cut -c3-

# On two cores without fast bfloat16 the page was there after 48 s, the report after 4 min 51 s and 494 CPU seconds.
run: $(STAMP)
	$(BIN)/python -m migm.side_by_side +experiment=cifar10_deep_best max_seconds=36 "note='$(KNOWN)'"
	$(BIN)/python -m migm.train +experiment=cifar10_quick

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# make test-slow   what takes longer: several processes, real kills, every option with every command
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

# make test-gpu    what needs a CUDA device: the whole chain on it, compared with the CPU
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu tests/gpu

# make browser     a Chromium for the tests that open pages: Debian's for root, else the one playwright brings
browser: $(STAMP)
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; \
	else $(BIN)/playwright install --only-shell chromium; fi

# make lint        ruff, pyright and the layers;  make format  rewrites
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

# make clean       removes .venv and caches, not outputs
clean:
	rm -rf .venv .pytest_cache .ruff_cache
