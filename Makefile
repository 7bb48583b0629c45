# `make help` lists the targets. Only those that install Debian packages, Python packages (with pip's
# cache) or Debian trees use the network; all else stays inside the checkout.

PYTHON ?= /usr/bin/python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Files of the package with the suffix $(1): it has folders, but no folders in these.
package = $(wildcard pmxcfs/*.$(1) pmxcfs/*/*.$(1))
EXTENSIONS := pmxcfs._compiled $(subst /,.,$(basename $(call package,pyx)))
TYPED := $(filter $(call package,py),$(patsubst %.pxd,%.py,$(call package,pxd)))
EXTENSION_SOURCES := setup.py pmxcfs/_cold.h $(TYPED) $(call package,pyx) $(call package,pxd)
SHARED_OBJECTS = find pmxcfs -name '*.so'

# The .venv, and the headers that the extensions include.
PACKAGES := python3-venv python3-dev
# Building the extensions and llfuse.
PACKAGES += gcc libc6-dev pkgconf libfuse-dev
# The cluster: corosync's client libraries.
PACKAGES += libcpg-dev libquorum-dev libcmap-dev libcfg-dev
# Local clients, and metrics.
PACKAGES += libqb-dev librrd-dev
# Mounting; FUSE over io_uring.
PACKAGES += fuse3 liburing-dev

# Only for tests: ext4 on a loop device, what an fsync really calls; nodes in namespaces; what
# looks into round-robin databases.
TEST_PACKAGES := mount e2fsprogs strace util-linux iproute2 nftables libfaketime rrdtool
# Tests of what the Debian package installs: the unit, the manual pages, the maintainer scripts.
TEST_PACKAGES += systemd man-db dash
# The floors of bench, and a client in Perl.
BENCH_PACKAGES := libsqlite3-dev perl
# Services that tests run. Their packages are unpacked below build/, not installed: that would
# enable them on this machine (corosync would start as a cluster of its own at the next boot).
UNPACKED := corosync corosync-qdevice corosync-qnetd rrdcached

# Only for the Debian package: building, checking, and trying it in a Debian tree of its own. The
# first lines are the package's Build-Depends.
DEB_PACKAGES := cython3 debhelper dh-python libcfg-dev libcmap-dev libcpg-dev libqb-dev libquorum-dev librrd-dev
DEB_PACKAGES += liburing-dev pkgconf procps python3-dev python3-hypothesis python3-llfuse python3-pytest
DEB_PACKAGES += python3-pytest-benchmark python3-setuptools python3-shtab python3-zstandard
DEB_PACKAGES += build-essential lintian shellcheck debootstrap iproute2

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

.PHONY: deps
deps: packages .venv/.installed ## install what is missing: Debian packages (as root) and .venv

.PHONY: test-deps
test-deps: deps test-packages $(UNPACKED:%=build/debian/%.stamp)

# What of the Debian packages $(1) is not installed, is installed now.
define install
	@missing=$$(comm -23 <(printf '%s\n' $(1) | sort) \
	  <(dpkg-query -Wf '$${db:Status-Abbrev}$${Package}\n' $(1) 2>&- | sed -n 's/^ii *//p' | sort)); \
	if [ -n "$$missing" ] && [ $$(id -u) != 0 ]; then \
	  echo "missing Debian packages; run as root: apt-get install" $$missing >&2; exit 1; \
	elif [ -n "$$missing" ]; then \
	  apt-get -q update; \
	  DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install $$missing; \
	fi
endef

.PHONY: packages
packages:
	$(call install,$(PACKAGES))

.PHONY: test-packages
test-packages: packages
	$(call install,$(TEST_PACKAGES))

.PHONY: bench-packages
bench-packages: packages
	$(call install,$(BENCH_PACKAGES))

.PHONY: deb-packages
deb-packages:
	$(call install,$(DEB_PACKAGES))

# The libraries that the program needs are installed; the package itself is only laid out.
# Lists that are too old for a download are renewed.
build/debian/%.stamp: | test-packages
	$(call install,$$(apt-get -s --no-install-recommends install $* | sed -n 's/^Inst \(lib[^ ]*\) .*/\1/p'))
	@rm -rf build/download && mkdir -p build/download
	cd build/download && { apt-get -q download $* || { apt-get -q update; apt-get -q download $*; }; }
	dpkg -x build/download/$*_*.deb build/debian
	@rm -rf build/download
	touch $@

# Without the extensions, which `build` compiles in place: this makes the commands in .venv/bin.
.venv/.installed: requirements.txt pyproject.toml | packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	PMXCFS_NO_EXTENSIONS=1 $(BIN)/pip install -q --disable-pip-version-check \
	  --no-build-isolation --no-deps -e .
	sed -i $(ISOLATED) $(BIN)/pmxcfs $(BIN)/create_pmxcfs_db
	touch $@

# The commands run as root, so they import no modules from PYTHONPATH or from the user's own site directory.
# pip writes the first line like this, or for a long path the second one.
ISOLATED := -e '1s,^\#!.*/python[0-9.]*$$,& -I,' -e "2s,^'''exec' .*/python[0-9.]*,& -I,"

.PHONY: build
build: deps build/optimized.stamp ## compile the extensions; .venv/bin/pmxcfs works afterwards

SOURCES := setup.py pyproject.toml requirements.txt Makefile README.md CHANGELOG.md LICENSE
SOURCES += bench debian docs pmxcfs stubs tests

# The sources in a directory of their own, for builds that must not replace the usual one.
copy = rm -rf build/$(1) && mkdir -p build/$(1) && \
  cp -r $(SOURCES) build/$(1)/ && find build/$(1)/pmxcfs -name '*.so' -delete && rm -rf build/$(1)/bench/results && \
  find build/$(1) -name __pycache__ -prune -exec rm -rf {} +

.PHONY: debug
debug: deps build/debug.stamp ## compile with assertions, without optimization, annotated

# Both variants end in the same place. `install` replaces a file that a running daemon has mapped
# instead of writing into it; one of an earlier build would hide a module. Cython does not notice
# changed directives, so setup.py starts it anew.
build/%.stamp: $(EXTENSION_SOURCES) .venv/.installed
	$(if $(filter setup.py %.h .venv/.installed,$?)$(VARIABLES),rm -rf build/cython)
	rm -rf build/$*/pmxcfs
	$(VARIABLES) $(BIN)/python setup.py -q build_ext --build-temp build/$* --build-lib build/$*
	for object in $$($(SHARED_OBJECTS)); do [ -e build/$*/$$object ] || rm -f $$object; done
	cd build/$* && $(SHARED_OBJECTS) -exec install {} $(CURDIR)/{} ';'
	rm -f build/*.stamp
	touch $@
build/debug.stamp: VARIABLES = PMXCFS_DEBUG=1

define TOUR
Mounting on run/pve; the database is in run/state and stays there. Ctrl-C ends it.
From a second shell:

  cd $(CURDIR)/run/pve
  echo 'keyboard: de' > datacenter.cfg && cat datacenter.cfg
  mkdir -p nodes/node1/qemu-server nodes/node2/qemu-server
  echo 'memory: 512' > nodes/node1/qemu-server/100.conf && cat .vmlist
  echo 'memory: 512' > nodes/node2/qemu-server/100.conf   # refused: 100 is in use
  mv nodes/node1/qemu-server/100.conf nodes/node2/qemu-server/ && cat .vmlist .version
  mv nodes/node2/qemu-server/100.conf nodes/node1/qemu-server/   # and back, for another tour
  echo 1 > .debug && ls && echo 0 > .debug                # look at the first shell
  $(CURDIR)/.venv/bin/pmxcfs status --ipc-name pmxcfs-run

endef
export TOUR

.PHONY: run
run: as-root build ## mount a local-mode file system on run/pve in the foreground, until Ctrl-C
	@mkdir -p run; printf '%s\n' "$$TOUR"; trap : INT; status=0; \
	$(BIN)/pmxcfs --foreground --local --nodename node1 --mountpoint run/pve \
	  --statedir run/state --rundir run/sockets --rrddir run/rrd --ipc-name pmxcfs-run \
	  || status=$$?; \
	rmdir run/pve 2> /dev/null || true; \
	echo "pmxcfs has ended with exit status $$status"; exit $$status  # after SIGKILL the next run unmounts

.PHONY: as-root
as-root:
	@[ "$$(id -u)" = 0 ] || { echo "only root can mount: run it as root, as with sudo" >&2; exit 1; }

.PHONY: demo
demo: as-root build test-deps ## show a cluster of three nodes at work, in namespaces on this machine
	@PATH="$$PATH:$(CURDIR)/build/debian/usr/sbin:$(CURDIR)/build/debian/usr/bin" \
	  $(BIN)/python -m tests.cluster.demo

.PHONY: check
check: lint types unit ## style, types and unit tests: run it before each commit

.PHONY: lint
lint: build ## check the style of all code
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint pmxcfs

.PHONY: types
types: build ## check the types of all Python code
	$(BIN)/mypy --no-error-summary

.PHONY: stubtest
stubtest: build ## compare the .pyi files with the extensions
	$(BIN)/python -m mypy.stubtest $(EXTENSIONS)

.PHONY: unit
unit: build ## tests that need no privileges
	$(PYTEST) tests/unit

.PHONY: mount
mount: build test-deps ## tests on real mounts
	$(PYTEST) tests/mount

.PHONY: cluster
cluster: build test-deps ## tests on real clusters: nodes in namespaces on this machine
	$(PYTEST) tests/cluster

.PHONY: clients
clients: build test-deps ## tests of local clients: libqb, rrdcached, and the commands that ask
	$(PYTEST) tests/clients

# The kernels of Debian 12 and 13 have no FUSE over io_uring; its tests are left out there.
URING := $(if $(wildcard /sys/module/fuse/parameters/enable_uring),uring)
REQUIRED := PMXCFS_REQUIRE=fuse,corosync,$(URING)

.PHONY: test
test: build test-deps ## everything that CI runs; a skipped test is a failure
	@$(MAKE) --no-print-directory -j2 test-machine test-beside

# What uses the machine, one after the other: most of it waits for devices, nodes and clocks.
.PHONY: test-machine
test-machine: build test-deps
	PMXCFS_TEST_FUSE=native $(REQUIRED) $(PYTEST) tests/clients tests/cluster tests/mount tests/package \
	  --ignore $(URING_TESTS)

# What can run beside it: unit tests only in time that nothing else needs, and what depends on the session with the
# other ones. What all this prints comes at its end.
.PHONY: test-beside
test-beside: build test-deps lint types stubtest
	@status=0; { PMXCFS_FUZZ_SECONDS=60 $(REQUIRED) chrt --idle 0 $(PYTEST) tests/unit && \
	  $(if $(URING),PMXCFS_TEST_FUSE=uring $(REQUIRED) $(PYTEST) $(SESSION_TESTS) tests/mount/test_interrupts.py $(URING_TESTS) &&) \
	  PMXCFS_TEST_FUSE=llfuse $(REQUIRED) $(PYTEST) $(SESSION_TESTS); \
	} > build/test-beside.log 2>&1 || status=$$?; cat build/test-beside.log; exit $$status

# A third of the mount tier: all that depends on the session.
SESSION_TESTS := $(patsubst %,tests/mount/test_%.py,busy_stops ends fixed_entries foreign lifecycle \
  publishing recorded removed stopping waiting)
# These switch FUSE over io_uring off and on, for the whole machine.
URING_TESTS := tests/mount/test_uring.py

# Those marked long that depend on the session.
LONG_SESSION_TESTS := tests/mount/test_busy_stops.py tests/mount/test_interrupts.py

TREES := build/bookworm/.made build/trixie/.made

.PHONY: test-long
test-long: build test-deps deb deb-trixie $(TREES) ## random tests for much longer; the Debian package on a machine
	PMXCFS_TEST_FUSE=native $(REQUIRED),packaging $(PYTEST) -m long tests
	PMXCFS_FUZZ_SECONDS=3600 $(PYTEST) tests/unit/fuse/test_decode.py tests/unit/fuse/test_queue.py
	PMXCFS_TEST_FUSE=llfuse $(REQUIRED) $(PYTEST) tests/mount
	$(if $(URING),PMXCFS_TEST_FUSE=uring $(REQUIRED) $(PYTEST) tests/mount)
	$(if $(URING),PMXCFS_TEST_FUSE=uring $(REQUIRED) $(PYTEST) -m long $(LONG_SESSION_TESTS))

.PHONY: deb
deb: deb-packages ## build the package for this machine's Debian in build/deb, check it with lintian
	shellcheck debian/preinst debian/postinst debian/postrm debian/tests/smoke \
	  tests/package/inside
	rm -rf build/deb
	$(call copy,deb/pmxcfs)
	cd build/deb && $(DEBIAN_PATH) $(BUILD_PACKAGE)

# Debian's tools, and no other Python that somebody has put in front of Debian's.
DEBIAN_PATH := PATH=/usr/sbin:/usr/bin:/sbin:/bin
BUILD_PACKAGE := sh -euc 'cd pmxcfs; dpkg-buildpackage --no-sign; cd ..; \
  lintian -EvIL +pedantic --fail-on error,warning pmxcfs_*.changes'

# The builder is an ordinary user, nobody, whose priority is low.
.PHONY: deb-trixie
deb-trixie: build/trixie-builder/.made ## the same for Debian 13, in build/deb-trixie
	rm -rf build/deb-trixie
	$(call copy,deb-trixie/pmxcfs)
	chown -R 65534:65534 build/deb-trixie
	tests/package/inside build/trixie-builder build/deb-trixie \
	  setpriv --reuid=65534 --regid=65534 --clear-groups nice $(BUILD_PACKAGE)

# Debian 12 and 13 for tests to boot and to install into, who never change it: a system, and all that the
# package depends on. Uses the network.
MIRROR := http://deb.debian.org/debian
$(TREES): build/%/.made: tests/package/tree.txt | deb-packages
	rm -rf build/$* && mkdir -p build
	debootstrap --variant=minbase --include=$$(paste -sd, $<) $* build/$* $(MIRROR)
	touch $@

# Debian 13 with all that the package is built and checked with. Uses the network.
build/trixie-builder/.made: debian/control build/trixie/.made tests/package/inside
	rm -rf build/trixie-builder && cp -a build/trixie build/trixie-builder && rm $@
	tests/package/inside build/trixie-builder . sh -euc 'apt-get -q update; \
	  apt-get -qy --no-install-recommends install build-essential lintian; \
	  apt-get -qy --no-install-recommends build-dep ./'
	touch $@

.PHONY: scenarios-rewrite
scenarios-rewrite: build ## rewrite the expected outcomes in tests/scenarios; review the difference like code
	$(BIN)/python -m tests.fakes.simulation.scenario tests/scenarios/*.txt

.PHONY: storm
storm: build test-deps ## twelve minutes of faults on a cluster of three nodes
	$(REQUIRED) $(PYTEST) -m long tests/cluster/test_consistency.py

.PHONY: cuts
cuts: build test-deps ## a hundred forks of clusters, and twenty reboots
	$(REQUIRED) $(PYTEST) -m long tests/cluster/test_cuts.py tests/cluster/test_forks.py

.PHONY: sixteen
sixteen: build test-deps ## a cluster of sixteen nodes that join, are killed, cut off and healed
	$(REQUIRED) $(PYTEST) -m long tests/cluster/test_sixteen.py

.PHONY: asan
asan: asan-build ## unit and libqb tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(SANITIZED) PMXCFS_FUZZ_SECONDS=60 $(CURDIR)/$(PYTEST) \
	  tests/unit tests/clients/test_service.py tests/clients/test_recorded.py

# What is found in a daemon that a test kills is told by nothing but a file.
FOUND := $(CURDIR)/build/asan/found

.PHONY: asan-mount
asan-mount: as-root asan-build test-deps ## the mount tier under both sanitizers; FUSE=uring: over io_uring
	$(SANITIZED):log_path=$(FOUND) UBSAN_OPTIONS=print_stacktrace=1:log_path=$(FOUND) \
	  PMXCFS_TEST_FUSE=$(or $(FUSE),native) $(REQUIRED) $(CURDIR)/$(PYTEST) tests/mount \
	  $(addprefix --deselect=tests/mount/,$(WITH_LITTLE_MEMORY)) || status=$$?; \
	if cat $(FOUND).* 2> /dev/null; then exit 1; else exit $${status:-0}; fi

# The sanitizer keeps what is freed, and has memory of its own.
WITH_LITTLE_MEMORY := test_crowds.py::test_64_readers_and_8_writers_get_no_error_and_leave_nothing
WITH_LITTLE_MEMORY += test_uring.py::test_a_queue_takes_little_memory

.PHONY: asan-build
asan-build: deps
	$(call copy,asan)
	cd build/asan && PMXCFS_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace

# The daemons of the tests inherit this.
SANITIZED = cd build/asan && LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
  PYTHONPATH=$(CURDIR)/build/asan PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0

.PHONY: cover
cover: deps test-deps ## line coverage of all tests, extensions and daemons included
	$(call copy,cover)
	cd build/cover && PMXCFS_COVERAGE=1 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/cover && export PATH="$$PATH:$(CURDIR)/build/debian/usr/sbin" PYTHONPATH=$(CURDIR)/build/cover COVERAGE_FILE=$(CURDIR)/build/cover/.coverage \
	  COVERAGE_PROCESS_START=$(CURDIR)/build/cover/pyproject.toml; \
	$(CURDIR)/$(PYTEST) tests || true; \
	$(CURDIR)/$(BIN)/coverage combine -q; $(CURDIR)/$(BIN)/coverage report

# Servers that do nothing, for bench to compare with.
FLOORS := $(addprefix build/floor/,floor floor_native member)
build/floor/floor: LIBRARIES = $$(pkg-config --cflags --libs fuse)
build/floor/floor_native: LIBRARIES = -luring -lpthread
build/floor/member: LIBRARIES = -lcpg -lsqlite3
$(FLOORS): build/floor/%: bench/floor/%.c | bench-packages
	@mkdir -p $(@D)
	gcc -O2 -Wall -Wextra -Werror -o $@ $< $(LIBRARIES)

BENCH = PATH="$$PATH:$(CURDIR)/build/debian/usr/sbin" $(PYTEST) -c bench/pytest.ini \
  $(if $(AGAINST),--against=$(abspath $(AGAINST))) $(if $(FUSE),--fuse=$(FUSE))

.PHONY: bench
bench: as-root build test-deps $(FLOORS) ## measure against the floor, by turns; table, chart and JSON
	$(BENCH) bench

.PHONY: bench-quick
bench-quick: as-root build $(FLOORS) ## only a mount, nothing pinned; with AGAINST=DIR another checkout, too
	$(BENCH) bench/bench_mount.py -k unpinned

.PHONY: bench-compare
bench-compare: build ## how the ratios of the last two runs of bench differ
	$(BIN)/python -m bench.compare

.PHONY: clean
clean: ## remove all that was generated, the database of `make run` included
	@if grep -q " $(CURDIR)/run/pve " /proc/mounts; then \
	  if ls run/pve > /dev/null 2>&1; then \
	    echo "run/pve is mounted: end the daemon first" >&2; exit 1; \
	  else umount --lazy run/pve; fi; fi  # of a daemon that was killed
	rm -rf .venv build run bench/results .benchmarks .coverage* .hypothesis .mypy_cache .pytest_cache \
	  .ruff_cache *.egg-info
	$(SHARED_OBJECTS) -delete
	find pmxcfs tests bench -name __pycache__ -prune -exec rm -rf {} +
