# Everything a person or a machine does with this checkout. `make help` lists it.

CARGO ?= cargo
VENV := .venv
# What `make install` builds: `release`, or `dev` for a quick one with debug information.
PROFILE ?= release
PREFIX ?= /usr/local
DESTDIR ?=
TIER ?=

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
MAJOR := $(firstword $(subst ., ,$(VERSION)))
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BUILT := $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# What Rust's standard library needs of the system when it is linked statically; a test compares it.
PRIVATE_LIBS := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

.DEFAULT_GOAL := help
.PHONY: help setup build check fmt clippy doc doc-python test vm gpu bench install

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name words; do \
		printf '  %-9s %s\n' "$$name" "$$words"; done

setup: ## install what tests need (Debian packages if root or sudo can; Python tools into .venv)
	@tests/setup

build: ## build everything, with debug information
	$(CARGO) build --workspace

check: fmt clippy doc ## formatting, lints and documentation

fmt: ## compare the formatting
	$(CARGO) fmt --all --check

clippy: ## lint all code
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: ## build the documentation
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

doc-python: setup ## build the documentation of the Python package: target/doc/python/index.html
	rm -rf $(TARGET_DIR)/doc/wheel $(TARGET_DIR)/doc/package
	$(VENV)/bin/maturin build --quiet -m gpucontainer-py/Cargo.toml --compatibility linux --out $(TARGET_DIR)/doc/wheel
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-index --target $(TARGET_DIR)/doc/package $(TARGET_DIR)/doc/wheel/*.whl
	PYTHONPATH=$(TARGET_DIR)/doc/package $(VENV)/bin/pdoc -o $(TARGET_DIR)/doc/python gpucontainer gpucontainer.errors gpucontainer.stand_in gpucontainer.ray

test: setup ## run everything, or TIER=a,b of it: check rust rootless doc c python gpu vm
	@tests/tiers $(TIER)

vm: ## run the suites under Debian's kernels 6.1 and 6.12 in QEMU (needs no KVM)
	@tests/tiers vm

gpu: ## check on a real NVIDIA GPU, as root, and write the record into docs/real-gpu; says so if there is none
	@tests/real-gpu/run

bench: ## compare with bubblewrap, crun and runc; results go to target/bench
	@if [ -x benches/run ]; then benches/run; else echo "there are no benchmarks yet"; exit 1; fi

install: ## install the C library: PREFIX=/usr/local DESTDIR= PROFILE=release|dev
	$(CARGO) build -p gpucontainer-ffi --profile $(PROFILE)
	install -d $(DESTDIR)$(PREFIX)/include/gpucontainer $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/lib/cmake/gpucontainer
	install -m 755 $(BUILT)/libgpucontainer_ffi.so $(DESTDIR)$(PREFIX)/lib/libgpucontainer.so.$(VERSION)
	ln -sfn libgpucontainer.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/libgpucontainer.so.$(MAJOR)
	ln -sfn libgpucontainer.so.$(MAJOR) $(DESTDIR)$(PREFIX)/lib/libgpucontainer.so
	install -m 644 $(BUILT)/libgpucontainer_ffi.a $(DESTDIR)$(PREFIX)/lib/libgpucontainer.a
	install -m 644 include/gpucontainer.h include/gpucontainer.hpp $(DESTDIR)$(PREFIX)/include/
	install -m 644 include/gpucontainer/*.hpp $(DESTDIR)$(PREFIX)/include/gpucontainer/
	for file in pkgconfig/gpucontainer.pc cmake/gpucontainer/gpucontainerConfig.cmake \
			cmake/gpucontainer/gpucontainerConfigVersion.cmake; do \
		sed -e 's/@VERSION@/$(VERSION)/; s/@MAJOR@/$(MAJOR)/; s/@PRIVATE@/$(PRIVATE_LIBS)/' \
			gpucontainer-ffi/install/$$(basename $$file).in >$(DESTDIR)$(PREFIX)/lib/$$file || exit 1; done
