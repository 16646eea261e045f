# Builds, checks and tests. `make help` lists what there is; tests/testbed/README.md says how the testbed works.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# CLUSTER=existing uses the cluster of KUBECONFIG instead of the testbed's. What that needs stands in tests/testbed/README.md, and each target looks for it
# before it does anything.
CLUSTER ?= local
# Versions of PostgreSQL: those of the contract tests (14 to 18 serve), and those of the end-to-end tests' two servers.
POSTGRES ?= 15 18
SOURCE_POSTGRES ?= 15
DESTINATION_POSTGRES ?= 15
export PGPASSWORD ?= testbed-secret
# End-to-end tests at the same time; those that others would notice run alone whatever it says.
E2E_THREADS ?= 5
# Only tests whose name contains this.
TEST ?=
# Where the demonstration's mirror goes, if not to PostgreSQL: clickhouse, snowflake or bigquery.
DESTINATION ?=
# A project of BigQuery, for test-live.
BIGQUERY ?=

testbed := tests/testbed
cluster := $(testbed)/cluster/cluster
postgres := $(testbed)/postgres
clickhouse := $(testbed)/clickhouse
bigquery := $(testbed)/bigquery
snowflake := $(testbed)/snowflake
step := $(testbed)/step
scripts := $(wildcard .ci/run bench/run demo/run demo/watch demo/destination/*.sh tests/chart/golden.sh) \
  $(addprefix $(testbed)/,bigquery check-image cluster/cluster cluster/node cluster/tested clickhouse contract emulated image install-chart pack postgres setup snowflake step terminal)
# The test suites, by what they need: database servers, a cluster, or neither.
suites := $(basename $(notdir $(wildcard tests/*.rs) $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs))))
contract_suites := $(filter destination source stream,$(suites))
unit_suites := $(filter-out $(contract_suites) e2e,$(suites))
# End-to-end tests that kill containers or servers of this machine, or that pods have to reach. One that is missing here fails on another cluster and says why.
testbed_tests := away:: killing_workers_pipeline_and_swap a_stream_whose_pod_is_killed with_a_live_handover_the_old_tables \
  both_servers_may_be_killed a_server_behind_tls whatever_is_killed an_upgrade_in_mid_load a_server_that_is_not_set_up a_mirror_whose_source_is_gone

# helm and kubectl, and Go if setup brought it
export PATH := $(shell $(cluster) bin):$(shell $(testbed)/setup path):$(PATH)
export CLUSTER

# needs_cluster TARGET
ifeq ($(CLUSTER),existing)
on_node :=
needs_cluster = given-$(1) setup
else
on_node = $(cluster) exec env IMAGE="$$(cat target/image.ref)"
needs_cluster = cluster-up image
endif

.PHONY: help
help: ## list the targets
	@awk -F ': .*## ' '/^[a-z0-9-]+:.* ## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  with CLUSTER=existing, e2e and demo use the cluster of KUBECONFIG; with TEST=name, e2e, unit, contract and emulated tests run only such tests"

.PHONY: setup
setup: ## install the toolchains and Debian packages that are missing
	@$(testbed)/setup

.PHONY: check
check: setup helm ## formatting, lints, generated files, chart, scripts
	@$(step) "format" cargo fmt --check
	@if [[ $$(type -P cargo-clippy) || $${CI-} ]]; then $(step) "lint" cargo clippy --locked --workspace --all-targets -- --deny warnings; \
	else echo "==> lint skipped: Debian has no clippy for its new Rust; rustup has"; fi
	@$(step) "generated files" cargo run --locked --quiet -- crds --check
	@$(step) "chart" helm lint --strict charts/mirror-operator
	@$(step) "scripts" shellcheck --external-sources $(scripts)

.PHONY: unit
unit: setup helm ## tests that need no servers, and the documentation's examples
	@$(step) "unit tests" cargo test --locked --lib --bins $(addprefix --test ,$(unit_suites)) -- $(TEST)
	@$(step) "documentation tests" cargo test --locked --doc

.PHONY: contract
contract: setup ## tests of source, stream and destination against real PostgreSQL and ClickHouse servers (POSTGRES="14 15 ...")
	@$(step) "contract build" cargo test --locked --no-run $(addprefix --test ,$(contract_suites))
	@$(testbed)/contract "$(POSTGRES)" "$(contract_suites)" $(TEST)

# Accounts that cost money; those that are not given are left out. BIGQUERY: PROJECT of the service account's key file in
# MIRROR_TEST_BIGQUERY_CREDENTIALS, which may make datasets there (in MIRROR_TEST_BIGQUERY_LOCATION). MIRROR_TEST_SNOWFLAKE_ACCOUNT, _USER, _DATABASE,
# _PRIVATE_KEY (the PEM itself) or _PASSWORD, and, if they are not the user's default ones, _WAREHOUSE, _ROLE and _HOST; the role may create schemas in
# the database. No network is cut, so lost replies are left out.
.PHONY: test-live
test-live: live-bigquery live-snowflake ## the destinations' tests against real accounts of BigQuery and Snowflake

.PHONY: live-bigquery
live-bigquery: setup
ifneq ($(BIGQUERY),)
	@$(step) "live, BigQuery" env MIRROR_TEST_BIGQUERY_URL=https://bigquery.googleapis.com/$(BIGQUERY) \
	  cargo test --locked --test destination -- bigquery --skip lost --skip emulated
else
	@echo "==> live, BigQuery skipped: set BIGQUERY to a project"
endif

.PHONY: live-snowflake
live-snowflake: setup
ifneq ($(MIRROR_TEST_SNOWFLAKE_ACCOUNT),)
	@$(step) "live, Snowflake" cargo test --locked --test destination -- snowflake --skip lost --test-threads=4
else
	@echo "==> live, Snowflake skipped: set MIRROR_TEST_SNOWFLAKE_ACCOUNT to an account's identifier"
endif

.PHONY: emulated
emulated: setup ## tests of the destinations Snowflake and BigQuery against emulators; one that cannot be installed is left out
	@$(testbed)/emulated contract $(TEST)

ifeq ($(CLUSTER),existing)
source_url = $(SOURCE_URL)
destination_url = $(DESTINATION_URL)
clickhouse_url = $(CLICKHOUSE_URL)
left_out := $(testbed_tests)
else
source_url = $(shell $(postgres) url source)
destination_url = $(shell $(postgres) url destination)
clickhouse_url = $(shell $(clickhouse) url clickhouse)
e2e demo-tested: servers
endif
.PHONY: e2e
e2e: $(call needs_cluster,e2e) ## end-to-end tests on a real Kubernetes
	@$(step) "e2e build" cargo test --locked --no-run --test e2e
	@$(step) "chart install" $(on_node) $(testbed)/install-chart
	@$(step) "e2e tests" $(on_node) env SOURCE_URL=$(source_url) DESTINATION_URL=$(destination_url) CLICKHOUSE_URL=$(clickhouse_url) \
	  cargo test --locked --offline --test e2e -- --test-threads=$(E2E_THREADS) $(addprefix --skip ,bigquery snowflake $(left_out)) $(TEST)
ifneq ($(left_out),)
	@echo "==> left out, as they need the testbed's cluster: $(left_out)"
endif
ifeq ($(CLUSTER)$(TEST),local)
	@$(step) "e2e servers, 18 and 17" bash -ec '$(postgres) up source-18 18 5438 --on-node; $(postgres) up destination-17 17 5437 --on-node'
	@$(step) "e2e tests, 18 to 17" $(on_node) env SOURCE_URL=$$($(postgres) url source-18) DESTINATION_URL=$$($(postgres) url destination-17) \
	  cargo test --locked --offline --test e2e -- --test-threads=$(E2E_THREADS) a_resync_picks_up key_changes_toast changes_made_while \
	  with_a_live_handover some_tables_are_rebuilt killing_workers
	@$(step) "cluster, up and down" $(testbed)/cluster/tested
endif

.PHONY: e2e-emulated
e2e-emulated: $(call needs_cluster,e2e-emulated) servers ## end-to-end tests of Snowflake and BigQuery against emulators; one that cannot be installed is left out
	@$(step) "chart install" $(on_node) $(testbed)/install-chart
	@$(testbed)/emulated e2e $(TEST)

# On the cluster's node; what tests start there themselves must have been installed before.
.PHONY: servers
servers: cluster-up
	@$(step) "PostgreSQL 17 and 18" $(postgres) install 17 18
	@$(step) "ClickHouse" $(clickhouse) install
	@$(step) "destination, ClickHouse" $(clickhouse) up clickhouse 8123 --on-node
	@$(step) "source, PostgreSQL $(SOURCE_POSTGRES)" $(postgres) up source $(SOURCE_POSTGRES) 5432 --on-node
	@$(step) "destination, PostgreSQL $(DESTINATION_POSTGRES)" $(postgres) up destination $(DESTINATION_POSTGRES) 5433 --on-node

.PHONY: test
test: $(if $(filter existing,$(CLUSTER)),given-test) ## check, unit, contract, emulated, e2e, e2e-emulated and demo, with the time of each step
	@mkdir -p target && rm -f target/steps.tsv
	@status=0; $(MAKE) --no-print-directory check unit contract emulated e2e $(if $(filter local,$(CLUSTER)),e2e-emulated) demo-tested || status=$$?; $(step); exit $$status

.PHONY: bench
bench: setup ## measure, against psql and pgcopydb in the same run
	@bench/run

.PHONY: demo
demo: $(call needs_cluster,demo) ## a mirror and its resync, live in the terminal (DESTINATION=clickhouse|snowflake|bigquery: to another one)
# The node reaches nothing outside: what it starts was installed before.
ifeq ($(CLUSTER),local)
	@$(if $(filter clickhouse snowflake bigquery,$(DESTINATION)),$(step) "$(DESTINATION)" $(testbed)/$(DESTINATION) install)
endif
	@$(on_node) demo/run

# The demonstration checks what it shows: once in a terminal of its own, once with the cluster as somebody's own. It is removed afterwards: tests that are run again count what the operator writes.
.PHONY: demo-tested
demo-tested: $(call needs_cluster,demo-tested)
	@$(step) "demo, in a terminal" $(on_node) env DESTINATION= $(testbed)/terminal demo/run
	@$(step) "demo, cluster of one's own" $(on_node) $(MAKE) --no-print-directory demo DESTINATION=clickhouse \
	  CLUSTER=existing SOURCE_URL=$(source_url) CLICKHOUSE_URL=$(clickhouse_url)
	@$(step) "demo removed" $(on_node) env DESTINATION=clickhouse demo/run clean

.PHONY: image
image: setup ## build the operator's image, give it to the cluster, write its reference to target/image.ref
	@$(step) "image" $(testbed)/image
	@echo "    $$(cat target/image.ref)"

.PHONY: cluster-up
cluster-up: setup ## start the local cluster, if it is not up
	@$(step) "cluster build" $(cluster) build
	@$(step) "cluster up" $(cluster) up

.PHONY: cluster-down
cluster-down: ## stop the local cluster and its databases; nothing is left
	@$(postgres) down --on-node
	@$(clickhouse) down --on-node
	@$(bigquery) down --on-node
	@$(snowflake) down --on-node
	@$(cluster) down

.PHONY: clean
clean: cluster-down ## stop everything and delete what was built, except for the cluster's programs
	@$(postgres) down --all
	@$(clickhouse) down --all
	@$(bigquery) down --all
	@$(snowflake) down --all
	@cargo clean

# Without a cluster, the chart's tests need this much of its programs.
.PHONY: helm
helm: setup
	@$(step) "helm" $(cluster) build helm

# What CLUSTER=existing needs for a target. The emulators are the testbed's own, on its node.
given-e2e given-demo-tested given-test: given := IMAGE SOURCE_URL DESTINATION_URL CLICKHOUSE_URL
given-demo: given := IMAGE SOURCE_URL $(if $(filter clickhouse,$(DESTINATION)),CLICKHOUSE_URL,DESTINATION_URL)
given-e2e-emulated: only := make e2e-emulated
given-demo: only := $(addprefix make demo DESTINATION=,$(filter snowflake bigquery,$(DESTINATION)))
given-%:
	@if [[ "$(only)" ]]; then echo "$(only) needs the testbed's cluster, where the emulators run: leave CLUSTER=existing out" >&2; exit 2; fi
	@missing=(); for name in $(given); do [[ $${!name-} ]] || missing+=("$$name"); done; \
	if [[ $${missing[*]-} ]]; then echo "make $* with CLUSTER=existing needs $${missing[*]}: see tests/testbed/README.md" >&2; exit 2; fi
