# What people run. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help demo test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## throwaway Postgres, example rows, daemon, sample calls; ONCE=1 ends after the calls
	@scripts/ensure-postgres
	cargo run --locked -- demo $(if $(ONCE),--once)

test: ## everything a change must pass
	scripts/test
