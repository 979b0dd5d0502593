# `make run` and `make test` work on a fresh clone; each is a thin wrapper around .venv/bin/python -m ...
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: install run dev oracle browser test test-all slow lint format types docs lock clean

install: $(STAMP)

# The lock holds every version; eSpeak NG (GPL-3.0-or-later) is the extra that makes the server speak without weights,
# resemble-perth the one that marks what it speaks.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[espeak,watermark]" --group dev
	touch $(STAMP)

run: install
	$(PY) -m app.main

dev: install
	DEV_MODE=true $(PY) -m app.main

# The original CSM's building blocks, for tests/parity/test_csm_original.py. Beside the environment, not in it: they
# want an old torchao.
oracle: install
	$(PY) -m pip install --quiet --no-deps --upgrade --target .oracle torchtune==0.6.1 torchao==0.13.0

# For tests/browser; Chromium itself is the system's.
browser: install
	$(PY) -m pip install --quiet --constraint constraints.txt --group browser

test: install
	$(PY) -m pytest -n auto -m "not slow and not gpu"

slow: install
	$(PY) -m pytest -m "slow and not gpu"

test-all: install
	$(PY) -m pytest -m "not gpu"

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: install
	$(VENV)/bin/mypy

docs: install
	$(PY) -m app.cli docs

# After changing pyproject.toml: resolve anew in a fresh environment, then write the lock without local build tags.
lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/lock/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)/lock/bin/python -m pip install --quiet --editable ".[espeak,watermark]" --group dev --group browser
	$(VENV)/lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	rm -rf $(VENV)/lock

clean:
	rm -rf $(VENV) .oracle .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
