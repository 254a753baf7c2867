# What people run. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help demo fuzz test test-faults test-postgres-versions

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## throwaway Postgres, example rows, daemon, sample calls; ONCE=1 ends after the calls
	@scripts/ensure-postgres
	cargo run --locked -- demo $(if $(ONCE),--once)

fuzz: ## each fuzz target for SECONDS (60); TARGETS="number jwe" for some of them
	scripts/fuzz $(or $(SECONDS),60) $(TARGETS)

test: ## everything a change must pass
	scripts/test

test-postgres-versions: ## the tests of schema, feed and faults against Postgres 13 to 18, which npm brings
	scripts/test-postgres-versions $(VERSIONS)

test-faults: ## ten minutes of random faults under the judge, the worlds of feed.md, hostile rows; SIDETONE_SEED=n repeats a run
	@scripts/ensure-postgres
	SIDETONE_SEED=$${SIDETONE_SEED:-0} SIDETONE_FAULT_SECONDS=$${SIDETONE_FAULT_SECONDS:-600} cargo test --locked --test it -- --nocapture faults:: worlds:: rows::
