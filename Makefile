# What people run. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help bench check-instructions deb demo fuzz test test-api test-clients test-deb test-faults test-start soak test-postgres-versions

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deb: ## the Debian package of a release build, into target/debian
	@scripts/build-deb

demo: ## throwaway Postgres, example rows, daemon, sample calls; ONCE=1 ends after the calls
	@scripts/ensure-postgres
	cargo run --locked -- demo $(if $(ONCE),--once)

fuzz: ## each fuzz target for SECONDS (60); TARGETS="number jwe" for some of them
	scripts/fuzz $(or $(SECONDS),60) $(TARGETS)

test: ## everything a change must pass
	scripts/test

test-api: ## docs/openapi.yaml run against the daemon by schemathesis, on every socket of both sides; a minute
	@scripts/ensure-postgres
	@scripts/ensure-schemathesis
	SQLX_OFFLINE=true cargo test --locked --test it -- --ignored --nocapture api::

test-clients: ## the files of clients/ against a real node: curl, Python, Node, Lua, Go, Kamailio with calls from SIPp
	@scripts/ensure-postgres
	@scripts/ensure-clients
	SQLX_OFFLINE=true cargo test --locked --test it -- clients::

test-deb: ## builds the package, installs it into a scratch directory and tries everything in it
	scripts/test-deb --release

test-postgres-versions: ## the tests of schema, feed and faults against Postgres 13 to 18, which npm brings
	scripts/test-postgres-versions $(VERSIONS)

bench: ## sidetone beside nginx, Redis, Postgres and a raw echo; writes docs/benchmarks.md; ONLY=answers,copy some parts; QUICK=1 in five minutes, into target/tmp
	@scripts/ensure-postgres
	@scripts/ensure-peers
	PATH=$$PATH:/usr/sbin QUICK=$(QUICK) ONLY=$(ONLY) SQLX_OFFLINE=true cargo bench --locked --bench side_by_side

check-instructions: ## instructions of a call, at most 5 % over benches/instructions.toml; WRITE=1 makes them the figures
	scripts/check-instructions $(if $(WRITE),--write)

test-faults: ## twenty minutes at most: random faults under the judge, worlds, storms, hostile rows; SIDETONE_SEED=n repeats a run
	scripts/test-faults

soak: ## daemon, writers, readers and random faults for MINUTES (10), then the verdict and the curves of memory and descriptors
	@scripts/ensure-postgres
	cargo build --locked --release
	SIDETONE_BINARY=$$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/sidetone \
	SIDETONE_SEED=$${SIDETONE_SEED:-0} SIDETONE_SOAK_MINUTES=$(or $(MINUTES),10) \
	cargo test --locked --test it -- --ignored --nocapture soak::

test-start: ## how long a node with SIDETONE_NUMBERS (100000) numbers takes from exec to its first right answer, Postgres refused
	@scripts/ensure-postgres
	cargo test --release --locked --test it -- --nocapture --ignored disk::
