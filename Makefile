# Every command of this project, one readable line each; CI calls the same targets.

.DEFAULT_GOAL := help
LISTEN ?= 127.0.0.1:8080
# Recorded check-ins and their friend graph, and beside them a day of taxis; not part of the project.
RECORDED ?= ../shared/data/gowalla-nyc

# Worlds that `make sim` runs.
SEEDS ?= 1000
# Of the server that `make test-postgres` starts.
PG_VERSION ?= 18
# How long `make fuzz` looks at each target.
SECONDS ?= 60
# Not empty: without the test of a full disk, which only root can mount.
NO_SMALL_DISK ?= $(if $(filter 0,$(shell id -u)),,1)
export NO_SMALL_DISK
# A comma, where make takes one for its own.
, := ,

.PHONY: help needs demo build test test-long test-postgres test-unit sim fuzz bench bench-quick bench-more check format deny advisories clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

needs: ## Say what the build needs and this machine lacks
	@for tool in cargo cc c++ make pkg-config; do command -v $$tool >/dev/null || \
	  { echo "$$tool is missing: install rustup, and (Debian) apt-get install build-essential pkg-config" >&2; exit 1; }; done
	@pkg-config --exists openssl || \
	  { echo "OpenSSL's headers are missing: (Debian) apt-get install libssl-dev, (Fedora) dnf install openssl-devel" >&2; exit 1; }

demo: needs ## Run everything with 500 walkers and the live map at http://127.0.0.1:8080
	cargo run --release -p nearby -- run --listen $(LISTEN) --walkers 500 --dev-tokens

build: needs ## Build the binary, target/release/nearby
	cargo build --release -p nearby

test: ## Every test; installs what is missing (Debian, root) or names it
	sh e2e/setup.sh
	@$(MAKE) --no-print-directory needs
	cargo build -p nearby
	RECORDED=$(abspath $(RECORDED)) cargo test --workspace --no-fail-fast --features $(if $(wildcard $(RECORDED)),nearby-sink/recorded$(,)nearby-e2e/recorded,nearby-sink/full$(,)nearby-e2e/full)
	@$(if $(wildcard $(RECORDED)),,echo "NOT RUN: the checks on real movement, because $(RECORDED) is missing (see README)")
	@$(if $(NO_SMALL_DISK),echo "NOT RUN: history_disk_full$(,) because only root can mount its small disk$(,) or NO_SMALL_DISK is set")

test-long: ## Faults at length, 10,000 sockets, 1,000 clients that stop reading: a quarter to half an hour, and what was measured
	sh e2e/setup.sh
	cargo build -p nearby
	FAILOVER=long cargo test -p nearby-e2e --features full --test failover -- --nocapture
	GATEWAYS=10000 cargo test -p nearby-e2e --features full --test gateways -- --nocapture
	SLOW_READERS=1000 cargo test -p nearby-e2e --features full --test slow_readers -- --nocapture
	cargo test -p nearby-e2e --features full --test balancer -- --nocapture
	HISTORY_STORM=long cargo test -p nearby-e2e --features full --test history_storm -- --nocapture

test-postgres: ## The sink's tests on another Postgres, 15 to 18: make test-postgres PG_VERSION=18
	PG_VERSION=$(PG_VERSION) sh e2e/setup.sh
	cargo build -p nearby
	PG_VERSION=$(PG_VERSION) cargo test -p nearby-sink --features full
	PG_VERSION=$(PG_VERSION) cargo test -p nearby-e2e --features full --test history_storm --test history_disk_full
	@$(if $(NO_SMALL_DISK),echo "NOT RUN: history_disk_full$(,) because only root can mount its small disk$(,) or NO_SMALL_DISK is set")

test-unit: needs ## The tests that need nothing but cargo
	cargo test --workspace

sim: ## Simulate the whole pipeline, with overflow checks: make sim SEEDS=10000
	cargo run -p nearby-sim -- --seeds $(SEEDS)

fuzz: needs ## What strangers can send, mutated under libFuzzer, each target for so long: make fuzz SECONDS=600
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/instrument.sh cargo build -p nearby-fuzz --features guided --bins
	@sh fuzz/run.sh $(SECONDS)

SIDE_BY_SIDE = RECORDED=$(abspath $(RECORDED)) target/release/nearby-bench side-by-side

# Capacity comes last: if costs do not predict what is measured, it fails, and all else has been printed by then.
bench: ## What the design has goals for, on a real broker, and this pipeline beside its alternatives: 27 minutes and a build
	sh e2e/setup.sh
	sh bench/setup.sh
	cargo build --release -p nearby -p nearby-bench
	target/release/nearby-bench stages --reports 500000
	target/release/nearby-bench processor --reports 800000 --steady-s 5
	target/release/nearby-bench sockets --duration-s 3
	target/release/nearby-bench latency --duration-s 10
	target/release/nearby-bench transports --duration-s 10
	target/release/nearby-bench sink --partitions 4 --reports 300000
	target/release/nearby-bench sink --delay --partitions 16
	$(SIDE_BY_SIDE) --reports 100000 --slow-reports 10000 --latency-s 3 --limits --json target/side-by-side.json --svg target/side-by-side.svg
	$(SIDE_BY_SIDE) --workload gowalla,taxis,scale --peers nearby,redis,polling --gateways 2 --reports 100000 --slow-reports 6000 --latency-s 3 \
	  --scale-rate-per-s 14000 --scale-s 4 --json target/side-by-side-more.json --svg target/side-by-side-recorded.svg
	target/release/nearby-bench capacity

bench-quick: ## This pipeline beside its alternatives, at a smaller size: 4 minutes and a build; figures and a picture in target/
	sh e2e/setup.sh
	sh bench/setup.sh
	cargo build --release -p nearby -p nearby-bench
	$(SIDE_BY_SIDE) --gateways 2,40 --users 10000 --reports 100000 --slow-reports 10000 --latency-s 3 \
	  --json target/side-by-side.json --svg target/side-by-side.svg

bench-more: ## What takes longer: restoring a million lists, and what analysts wait for (ten minutes)
	sh e2e/setup.sh
	cargo build --release -p nearby -p nearby-bench
	target/release/nearby-bench restore
	target/release/nearby-bench history

check: ## Formatting, lints, documentation, and that schemas stay compatible with what was published
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features nearby-sink/recorded,nearby-e2e/recorded -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	cargo test -p nearby-schemas --test history

format: ## Format the code
	cargo fmt --all

deny: ## Licences, sources and bans of the dependencies (installs cargo-deny, which takes minutes)
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --all-features check licenses bans sources

advisories: ## Known vulnerabilities of the dependencies (fetches the RustSec database)
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --all-features check advisories

clean: ## Remove what was built
	cargo clean
