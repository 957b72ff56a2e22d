# make demo, test, test-embedded, check, benchmark, chaos, far, fuzz, dist, sdk-suite: each sets up .venv first when it
# is missing or old.

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$p; break; fi; done)
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: demo test test-embedded check benchmark chaos far fuzz dist sdk-suite constraints

demo: .venv/for-use
	$(BIN)/python demo.py --offline --worker

test: .venv/for-development
	$(BIN)/python -m pytest -n auto --maxprocesses 8

# The tests of nexum_agents once more, with the engine in their own process.
test-embedded: .venv/for-development
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --embedded tests/agents

# make fuzz TRIES=1000000 SEED=2
TRIES = 100000
SEED = 1

fuzz: .venv/for-development
	$(BIN)/python tests/chaos/fuzz.py --tries $(TRIES) --seed $(SEED)

check: .venv/for-development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: .venv/for-use
	$(BIN)/python benchmark.py

ROUNDS = 20

# make chaos ROUNDS=200 EMBEDDED=yes
chaos: .venv/for-development
	@$(BIN)/python tests/chaos/chaos.py --rounds $(ROUNDS) $(if $(EMBEDDED),--embedded)

CALLS = 100

far: .venv/for-development
	@$(BIN)/python tests/chaos/far.py --calls $(CALLS)

# openai-agents' own tests, plain and inside durable sessions. Some of its files: make sdk-suite ONLY="tests/test_run.py"
sdk-suite: .venv/for-development
	@$(BIN)/python tests/sdk_suite/run.py $(if $(ONLY),--only $(ONLY))

# A wheel in dist/, tried in an empty environment.
dist: .venv/for-use
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@$(PYTHON) -m venv dist/tried
	@dist/tried/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	@cd dist && tried/bin/python -c "from nexum_agents import durable_session" && tried/bin/nexum dev --help > /dev/null
	@rm -rf dist/tried
	@ls dist

.venv/for-use: requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv with $(PYTHON); this takes a minute or two, once."
	@$(PYTHON) -m venv --clear .venv
	@$(INSTALL) -r requirements.txt
	@touch $@

.venv/for-development: .venv/for-use requirements-dev.txt
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

# The newest versions that the bounds in the requirements allow, written down. Run `make check test` afterwards.
constraints:
	@$(PYTHON) -m venv --clear .venv
	@sed -i.bak '/^[^#]/d' constraints.txt && rm constraints.txt.bak
	@$(INSTALL) -r requirements-dev.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip >> constraints.txt
