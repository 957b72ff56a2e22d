# make demo, test, test-quick, test-browser, test-embedded, test-postgres, check, docs, pictures, benchmark, chaos, far,
# fuzz, dist, sdk-suite: each sets up .venv first when it is missing or old. With uv on the PATH it takes seconds, with pip a minute
# or two.

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)
BIN = .venv/bin
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --quiet \
	--quiet --disable-pip-version-check)
INSTALLER = $(if $(UV),uv: some seconds,pip: a minute or two)
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8

# What breaks first when something basic is broken: the store, the engine, sessions, the seams, the pages, the layers.
QUICK = tests/runtime/test_engine.py tests/runtime/test_store.py tests/runtime/test_house.py \
	tests/agents/test_sessions.py tests/agents/test_seams.py tests/example/test_docs.py

.PHONY: demo test test-quick test-embedded test-postgres check docs pictures benchmark chaos far fuzz dist sdk-suite
.PHONY: constraints test-browser

demo: .venv/for-use
	$(BIN)/python demo.py --offline --worker

test: .venv/for-development
	@echo "Running all tests; about 15 minutes on two cores. A choice of them in less than a minute: make test-quick"
	@$(PYTEST) --ignore tests/browser

# The page in a real browser. It needs a Chromium, and no network.
test-browser: .venv/for-development
	@command -v "$${CHROMIUM:-chromium}" > /dev/null || command -v google-chrome > /dev/null || { echo "Install Chromium for this, as with: \
sudo apt-get install chromium; or name one in CHROMIUM."; exit 1; }
	@echo "Running the tests of the page in Chromium; a minute."
	@$(PYTEST) tests/browser

test-quick: .venv/for-development
	@echo "Running a choice of the tests; less than a minute. All of them: make test"
	@$(PYTEST) $(QUICK)

# The tests of nexum_agents once more, with the engine in their own process.
test-embedded: .venv/for-development
	@echo "Running the tests of nexum_agents with the engine in their own process; some minutes."
	@$(PYTEST) --embedded tests/agents

# … and with a server on PostgreSQL: the system's, that of requirements-dev.txt, or at NEXUM_TEST_POSTGRES.
test-postgres: .venv/for-development
	@echo "Running the tests of nexum_agents with a server on PostgreSQL; some minutes."
	@$(PYTEST) --postgres tests/agents

# make fuzz TRIES=1000000 SEED=2
TRIES = 100000
SEED = 1

fuzz: .venv/for-development
	$(BIN)/python tests/chaos/fuzz.py --tries $(TRIES) --seed $(SEED)

check: .venv/for-development
	@echo "Checking style and types; mypy takes a minute the first time."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/: strict, so a dead link or a warning ends it.
docs: .venv/docs/done
	@echo "Building the site; some seconds."
	@$(PYTHON) docs/scripts/site_pages.py
	@.venv/docs/bin/zensical build --strict --clean
	@echo "Look at it with: $(PYTHON) -m http.server --directory site"

# Those of the README, in docs/pictures.
pictures: .venv/for-use
	@$(BIN)/python docs/scripts/pictures.py

benchmark: .venv/for-use
	$(BIN)/python benchmark.py

ROUNDS = 20

# make chaos ROUNDS=200 EMBEDDED=yes, or POSTGRES=yes
chaos: .venv/for-development
	@$(BIN)/python tests/chaos/chaos.py --rounds $(ROUNDS) $(if $(EMBEDDED),--embedded)$(if $(POSTGRES),--postgres)

CALLS = 100

far: .venv/for-development
	@$(BIN)/python tests/chaos/far.py --calls $(CALLS)

# openai-agents' own tests, plain and inside durable sessions. Some of its files: make sdk-suite ONLY="tests/test_run.py"
sdk-suite: .venv/for-development
	@$(BIN)/python tests/sdk_suite/run.py $(if $(ONLY),--only $(ONLY))

# A wheel in dist/, tried in an empty environment.
dist: .venv/for-use
	@rm -rf dist
	@echo "Building a wheel."
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@echo "Installing it into an empty environment, with $(INSTALLER)."
	@$(PYTHON) -m venv dist/tried
	@$(call INSTALL,dist/tried) -c constraints.txt dist/*.whl
	@cd dist && tried/bin/python -c "from nexum_agents import durable_session" && tried/bin/nexum dev --help > /dev/null
	@rm -rf dist/tried
	@ls dist

.venv/for-use: requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv with $(PYTHON), once."
	@$(PYTHON) -m venv --clear .venv
	@echo "Installing what a user needs, with $(INSTALLER)."
	@$(call INSTALL,.venv) -r requirements.txt
	@touch $@

.venv/for-development: .venv/for-use requirements-dev.txt
	@echo "Installing what the tests need, with $(INSTALLER)."
	@$(call INSTALL,.venv) -r requirements-dev.txt
	@touch $@

.venv/docs/done: requirements-docs.txt
	@echo "Setting up .venv/docs, once, with $(INSTALLER)."
	@$(PYTHON) -m venv --clear .venv/docs
	@$(call INSTALL,.venv/docs) -r requirements-docs.txt
	@touch $@

# The newest versions that the bounds in the requirements allow, written down. Run `make check test` afterwards.
constraints:
	@$(PYTHON) -m venv --clear .venv
	@sed -i.bak '/^[^#]/d' constraints.txt && rm constraints.txt.bak
	@echo "Looking for the newest versions, with $(INSTALLER)."
	@$(call INSTALL,.venv) -r requirements-dev.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip >> constraints.txt
