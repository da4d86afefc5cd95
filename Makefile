# make run, make test: that is all a stranger needs. Python 3.11 to 3.13 and make are enough.
PYTHON ?= python3
VENV   ?= .venv
# How many processes share the tests; the machine decides. `make test WORKERS=0` runs them in one.
WORKERS ?= auto
TESTS  ?= tests
# Where `make install` puts things, and what it installs: the binary, or a script of a virtual
# environment such as .venv/bin/swarmd. DESTDIR goes before all, for whoever makes a package.
PREFIX  ?= /usr/local
BINARY  ?= dist/swarmd
# Whether the scripts for OpenRC are among that; they are where it is. Empty: they are not.
OPENRC  ?= $(wildcard /sbin/openrc-run)
# How long `make soak` goes on.
KILLS  ?= 50
LEADER_KILLS ?= 100
FUZZ_S ?= 300
CALM_S ?= 600
# What goes wrong between five hosts: all, or some of tests/e2e/test_faults.py, as lossy,flap-leader.
FAULTS ?= all
# Seeds of chaos, and the simulated seconds under faults of each.
CHAOS ?= 1-1000
CHAOS_S ?= 600
# Histories of real daemons under faults that are looked through for one that has no order.
HISTORIES ?= 100

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help run test check format bench soak mutants binary install uninstall lock clean

help:
	@echo 'make run     a node of its own with a sample job, in a virtual environment'
	@echo 'make test    every check and test whose parts are here; TESTS=tests/unit picks some'
	@echo 'make check   ruff, mypy and the layers'
	@echo 'make format  put the code into its one form'
	@echo 'make bench   the benchmarks, as tables'
	@echo 'make soak    the long tests, for hours: kills, faults, chaos, histories'
	@echo 'make mutants planted bugs, each of which a test must see; writes docs/mutants.md'
	@echo 'make binary  dist/swarmd: all of it in one file'
	@echo 'make install the binary, the systemd units and a sample configuration; make uninstall'
	@echo 'make lock    resolve the dependencies anew into the lock files'
	@echo 'make clean   remove the virtual environment and what was built'

run: $(VENV)/.run
	$(BIN)/swarmd demo

test: check
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --maxprocesses=8 --dist=loadgroup \
	  --durations=30 --durations-min=5

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@set -e; for each in $$(cd bench && grep -l __main__ *.py); do \
	  echo "== $$each"; $(BIN)/python -m bench.$${each%.py}; done

# As long as it takes: the usual bound of a test does not hold here. How soon something has to be done
# is judged here alone, so it wants a machine to itself.
soak: $(VENV)/.dev
	SWARMD_SOAK_KILLS=$(KILLS) SWARMD_FUZZ_S=$(FUZZ_S) $(BIN)/python -m pytest \
	  -o faulthandler_timeout=7200 tests/e2e/test_kill9.py tests/e2e/test_fuzz.py
	SWARMD_SOAK_CALM_S=$(CALM_S) $(BIN)/python -m pytest \
	  -o faulthandler_timeout=7200 tests/e2e/test_detection.py
	SWARMD_SOAK_KILLS=$(LEADER_KILLS) $(BIN)/python -m pytest -rP \
	  -o faulthandler_timeout=7200 tests/e2e/test_failover.py tests/e2e/test_moving.py \
	  tests/e2e/test_swarm.py tests/e2e/test_restart.py
	SWARMD_SOAK_FAULTS=$(FAULTS) $(BIN)/python -m pytest -rP \
	  -o faulthandler_timeout=7200 tests/e2e/test_faults.py
	$(BIN)/python -m tests.sim --seeds $(CHAOS) --seconds $(CHAOS_S) --keep build/chaos.jsonl
	SWARMD_HISTORIES=$(HISTORIES) $(BIN)/python -m pytest -rP \
	  -o faulthandler_timeout=7200 tests/e2e/test_linearizable.py

# In copies of the tree, as many at once as there are processors; it takes some minutes. With
# SEEDS=20 so many seeds of chaos look for each as well, which takes hours of CPU.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants $(if $(SEEDS),--seeds $(SEEDS))

binary: $(VENV)/.dev
	$(BIN)/python packaging/build.py

UNITS := swarmd.service swarmd-runner.service swarm-drone.service
unit_dir := $(DESTDIR)$(PREFIX)/lib/systemd/system
SERVICES := swarmd swarm-drone
openrc_dir := $(DESTDIR)$(PREFIX)/lib/swarmd
doc_dir := $(DESTDIR)$(PREFIX)/share/doc/swarmd

# A node that runs goes on with the old binary until it is restarted: the new one comes under its
# name when it is whole. A configuration that is there stays as it is.
install:
	@test -x $(BINARY) || { echo 'make: there is no $(BINARY); say make binary first' >&2; exit 1; }
	install -d -m 755 $(DESTDIR)$(PREFIX)/bin $(unit_dir) $(doc_dir) $(DESTDIR)/etc/swarmd
	install -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/.swarmd.new
	mv -f $(DESTDIR)$(PREFIX)/bin/.swarmd.new $(DESTDIR)$(PREFIX)/bin/swarmd
	for unit in $(UNITS); do \
	  sed 's,/usr/local/,$(PREFIX)/,g' systemd/$$unit > $(unit_dir)/$$unit || exit 1; \
	  chmod 644 $(unit_dir)/$$unit; done
	$(if $(OPENRC),$(install_openrc))
	install -m 644 LICENSE README.md docs/*.md $(doc_dir)
	test -e $(DESTDIR)/etc/swarmd/swarmd.toml || \
	  install -m 644 packaging/swarmd.toml $(DESTDIR)/etc/swarmd/swarmd.toml
	test -e $(DESTDIR)/etc/swarmd/swarmd.env || \
	  install -m 600 packaging/swarmd.env $(DESTDIR)/etc/swarmd/swarmd.env
	@$(reload_units)

# Configuration and data stay; what still runs is stopped first.
uninstall:
	@if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then \
	  systemctl disable --now $(UNITS) || true; fi
	$(if $(OPENRC),$(uninstall_openrc))
	rm -f $(DESTDIR)$(PREFIX)/bin/swarmd $(addprefix $(unit_dir)/,$(UNITS))
	rm -rf $(doc_dir)
	@$(reload_units)
	@echo 'kept: $(DESTDIR)/etc/swarmd and $(DESTDIR)/var/lib/swarmd'

define install_openrc
install -d -m 755 $(openrc_dir) $(DESTDIR)/etc/init.d $(DESTDIR)/etc/conf.d
	install -m 755 packaging/openrc/supervised $(openrc_dir)/supervised
	for each in $(SERVICES); do \
	  sed 's,/usr/local/,$(PREFIX)/,g' packaging/openrc/$$each > $(DESTDIR)/etc/init.d/$$each && \
	  chmod 755 $(DESTDIR)/etc/init.d/$$each || exit 1; \
	  test -e $(DESTDIR)/etc/conf.d/$$each || \
	  install -m 644 packaging/openrc/$$each.confd $(DESTDIR)/etc/conf.d/$$each || exit 1; done
endef

define uninstall_openrc
@if [ -z '$(DESTDIR)' ]; then for each in $(SERVICES); do \
	  rc-service --ifstarted $$each stop; rc-update --all --quiet delete $$each 2> /dev/null; done || true; fi
	rm -f $(addprefix $(DESTDIR)/etc/init.d/,$(SERVICES))
	rm -rf $(openrc_dir)
endef

reload_units = if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then \
  systemctl daemon-reload; fi

# Without download addresses: an installer asks the index that it is set up for.
LOCK := --quiet --upgrade --strip-extras --generate-hashes --allow-unsafe --no-header \
  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
  --annotation-style=line --build-deps-for=editable
lock: $(VENV)/.dev
	$(BIN)/python -m piptools compile $(LOCK) -o requirements.lock pyproject.toml
	$(BIN)/python -m piptools compile $(LOCK) -c requirements.lock --extra=test --extra=dev \
	  --extra=packaging -o requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A virtual environment is made once, and filled again when a lock file changes. setuptools comes
# first: with it pip builds asks, which is published as source alone, and installs this project.
$(VENV)/.made:
	@$(MAKE) --no-print-directory .python-fits
	$(PYTHON) -m venv --clear $(VENV) || { \
	  echo 'make: $(PYTHON) lacks the venv module; on Debian: apt install python3-venv' >&2; \
	  rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements.lock pyproject.toml
	sed -n '/^setuptools==/,/# via/p' requirements.lock > $(VENV)/build.lock
	$(PIP) install --quiet --require-hashes --no-deps -r $(VENV)/build.lock
	$(PIP) install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(PIP) install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements-dev.lock
	@touch $@

.PHONY: .python-fits
.python-fits:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo 'make: swarmd needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is' \
	    "$$($(PYTHON) --version 2>&1 || true)"; \
	  echo 'make: name another one:  make PYTHON=/usr/bin/python3.12 ...'; exit 1; } >&2
