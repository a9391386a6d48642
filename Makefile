# Python 3.11 or newer and make are enough: everything else goes into .venv.
#
#   make serve    the chat on http://localhost:8080
#   make test     everything: lint, types, import contracts, all tests
#   make check    the quick part of it, under 30 seconds

VENV := .venv
BIN := $(VENV)/bin
LAYERS := domain application adapters entrypoints

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

# What the tests need besides wheels: the Debian package, and a program or a header in it.
PARTS := chromium:chromium nodejs:node npm:npm nginx:nginx libwebsockets-dev:libwebsockets.h
BENCH_PARTS := build-essential:cc libssl-dev:openssl/ssl.h zlib1g-dev:zlib.h

# Setuptools warns of its own strict mode, at length.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --quiet
INSTALL := $(PIP) --constraint constraints.txt
# Strict, because type checkers can't follow the lenient mode; without isolation, because
# the build's own needs are pinned and installed already.
EDITABLE := --no-build-isolation --config-settings editable_mode=strict --editable

# Tests start hundreds of processes. Each would compile the package anew where the
# environment says that Python shall keep nothing.
unexport PYTHONDONTWRITEBYTECODE

# How many processes share the tests: one more than there are cores, because many tests wait.
WORKERS ?= auto

# What takes time before the tests does so side by side; what it says stays together.
BESIDE := --no-print-directory --jobs=4 $(if $(filter output-sync,$(.FEATURES)),--output-sync)

.PHONY: serve test before-tests check handlers conformance bench fuzz dist clean lint types contracts \
	parts bench-parts FORCE
.DELETE_ON_ERROR:

serve: $(VENV)/.serve
	$(BIN)/eyewall serve

# pytest comes last, so that its closing line does.
test:
	@$(MAKE) $(BESIDE) before-tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --durations 15

before-tests: parts $(VENV)/.test $(VENV)/.bench $(VENV)/.npm $(VENV)/.compiled lint types \
	contracts handlers

check: $(VENV)/.test lint types contracts
	$(BIN)/python -m pytest tests/domain tests/application tests/test_structure.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy --strict -p eyewall -m eyewall_pytest
	$(BIN)/mypy --strict examples

contracts: $(VENV)/.test
	$(BIN)/lint-imports

# A run of its own: pytest-tornado needs a setuptools that is older than the project's.
handlers: $(VENV)/.test $(VENV)/.handlers
	PYTHONPATH=$(VENV)/handlers $(BIN)/python -m pytest --quiet tests/handlers

# What `make test` leaves out of Autobahn's cases, because it takes some 10 minutes. In
# groups: the cases of one run side by side, and each has a time that it must end in.
CASES := 9.* $(foreach n,1 2 3 4 5,12.$(n).*) $(foreach n,1 2 3 4 5 6 7,13.$(n).*)
conformance: $(VENV)/.test
	EYEWALL_AUTOBAHN='$(CASES)' $(BIN)/python -m pytest tests/conformance

bench: bench-parts $(VENV)/.test $(VENV)/.bench
	$(BIN)/python -m tests.performance $(BENCH)

# Adds what it finds to tests/fuzz/corpus. TARGET='parser json' takes these only.
FUZZ_SECONDS ?= 300
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(TARGET)

# A folder that an earlier build left would go into the wheel with all its old files.
dist: $(VENV)/.test
	rm -rf build/lib
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist out *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(LAYERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "eyewall needs Python 3.11 or newer, and none was found;" \
		"make PYTHON=/path/to/python names one" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) can't make a virtual" \
		"environment: it lacks venv or ensurepip (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --upgrade pip setuptools
	@touch $@

# The installed package is a tree of links, one for each file: made anew when a file came
# or went, or when the tree is gone, but not when a file was changed.
$(VENV)/.files: FORCE $(VENV)/.made
	@ls -d build/__editable__.* >/dev/null 2>&1 || rm -f $@
	@find $(LAYERS) clients -type f ! -path '*/__pycache__/*' | LC_ALL=C sort > $@.now
	@cmp -s $@.now $@ && rm $@.now || mv $@.now $@

$(VENV)/.serve: $(VENV)/.files pyproject.toml constraints.txt
	$(INSTALL) $(EDITABLE) .
	@touch $@

$(VENV)/.test: $(VENV)/.files pyproject.toml constraints.txt
	$(INSTALL) --group test --group fuzz $(EDITABLE) '.[all]'
	@touch $@ $(VENV)/.serve

# The peers in the bench. One without a wheel for this machine is no reason to stop: the
# bench leaves it out, and says so. An installation that a signal ended is repeated by the
# next make: what it left behind may lack half of its files.
$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt | $(VENV)/.test
	@$(INSTALL) --only-binary :all: --group bench || { status=$$?; [ $$status -lt 128 ] || \
		exit $$status; \
		echo "not all of the bench's peers could be installed: it leaves those out" >&2; }
	@touch $@

# Once, before several processes read the tests: each would compile all of them anew.
$(VENV)/.compiled: | $(VENV)/.test
	@$(BIN)/python -m pytest --collect-only -qq > $@.log || { cat $@.log; exit 1; }
	@rm $@.log
	@touch $@

# Packages that only the handler tests import, in a folder that only they have on their path.
$(VENV)/.handlers: $(VENV)/.made tests/handlers/requirements.txt
	@rm -rf $(VENV)/handlers
	$(PIP) --no-deps --target $(VENV)/handlers --requirement tests/handlers/requirements.txt
	@touch $@

# Clients for Node that the tests run, and the TypeScript compiler, of the versions in the lock
# file. Their install scripts only compile what they can do without.
LIBRARIES := tests/libraries/package.json tests/libraries/package-lock.json
$(VENV)/.npm: $(VENV)/.made $(LIBRARIES) | parts
	@rm -rf $(VENV)/npm && mkdir $(VENV)/npm && cp $(LIBRARIES) $(VENV)/npm
	@if npm ci --prefix $(VENV)/npm --ignore-scripts --no-audit --no-fund --loglevel error >&2; \
	then touch $@; \
	else rm -rf $(VENV)/npm; echo "npm could not install the clients for Node, so what needs" \
		"them can't run" >&2; [ "$(CI)" != true ]; fi

# --- what does not come as a wheel

parts: WANTED := $(PARTS) $(BENCH_PARTS)
bench-parts: WANTED := $(BENCH_PARTS)
parts bench-parts:
	@missing() { for part in $(WANTED); do case $$part in \
		*.h) echo "#include <$${part#*:}>" | cc -E - ;; \
		*) command -v $${part#*:} ;; \
		esac >/dev/null 2>&1 || printf ' %s' $${part%%:*}; done; }; \
	if [ -n "$$(missing)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $$(missing); \
	fi; \
	if [ -n "$$(missing)" ]; then \
		echo "not here, so what needs it can't run:$$(missing)" >&2; \
		[ "$(CI)" != true ]; \
	fi
