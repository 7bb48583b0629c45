# `make help` lists the targets. Only `deps` uses the network and installs Debian packages;
# all else stays inside the checkout.

PYTHON ?= /usr/bin/python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
EXTENSION_SOURCES := setup.py $(wildcard pmxcfs/*.pyx pmxcfs/*.pxd pmxcfs/*.h)

# The .venv, and the headers that the extensions include.
PACKAGES := python3-venv python3-dev
# Building the extensions and llfuse.
PACKAGES += gcc libc6-dev pkg-config libfuse-dev
# Mounting.
PACKAGES += fuse3
# Tests: ext4 on a loop device, and what an fsync really calls.
PACKAGES += mount e2fsprogs strace

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

.PHONY: deps
deps: packages .venv/.installed ## install what is missing: Debian packages (as root) and .venv

.PHONY: packages
packages:
	@missing=$$(comm -23 <(printf '%s\n' $(PACKAGES) | sort) \
	  <(dpkg-query -Wf '$${db:Status-Abbrev}$${Package}\n' $(PACKAGES) 2>&- | sed -n 's/^ii *//p' | sort)); \
	if [ -n "$$missing" ] && [ $$(id -u) != 0 ]; then \
	  echo "missing Debian packages; run as root: apt-get install" $$missing >&2; exit 1; \
	elif [ -n "$$missing" ]; then \
	  apt-get -q update; \
	  DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install $$missing; \
	fi

# Without the extensions, which `build` compiles in place: this makes the commands in .venv/bin.
.venv/.installed: requirements.txt pyproject.toml | packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	PMXCFS_NO_EXTENSIONS=1 $(BIN)/pip install -q --disable-pip-version-check \
	  --no-build-isolation --no-deps -e .
	touch $@

.PHONY: build
build: deps build/optimized.stamp ## compile the extensions; .venv/bin/pmxcfs works afterwards

.PHONY: debug
debug: deps build/debug.stamp ## the same with assertions, without optimization, annotated

# Both variants end in the same place. `install` replaces a file that a running daemon has mapped
# instead of writing into it.
build/%.stamp: $(EXTENSION_SOURCES) .venv/.installed
	$(VARIABLES) $(BIN)/python setup.py -q build_ext --build-temp build/$* --build-lib build/$*
	install -t pmxcfs build/$*/pmxcfs/*.so
	rm -f build/*.stamp
	touch $@
build/debug.stamp: VARIABLES = PMXCFS_DEBUG=1
