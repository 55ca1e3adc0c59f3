# `make help` lists the targets.
.PHONY: help setup servers test check demo bench soak clean

help:   ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup:  ## install everything that is needed (Debian packages, .venv from the lock file)
	@scripts/setup

servers: setup  ## what tests run against: object stores, a guest's kernel (about 500 MB, once)
	@scripts/install-packages scripts/packages-test.txt
	@scripts/test-servers
	@scripts/test-guest

check: setup  ## style, types and layers
	.venv/bin/ruff format --check src tests bench
	.venv/bin/ruff check src tests bench
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

test: check servers  ## all checks, and all tests but the long forms (under 10 minutes on 2 cores)
	@scripts/test

demo: setup  ## disks protected, changed, an older point restored; a running VM damaged, and seconds before brought back
	@scripts/install-packages scripts/packages-demo.txt
	@scripts/test-guest
	@scripts/demo

bench: setup  ## side by side with borg, restic and qemu-img; writes docs/benchmarks.md (about an hour)
	@scripts/bench

soak: servers  ## the long forms: random tests at length, and what `make test` leaves out (an hour)
	@scripts/install-packages scripts/packages-soak.txt
	EVERYWHEN_SOAK=1 .venv/bin/pytest --timeout 7200 $$(grep -rlE --include='test_*.py' '^from tests.long_forms import' tests)

clean:  ## remove what setup and tests made
	rm -rf .venv .servers .mypy_cache .ruff_cache .pytest_cache .hypothesis
