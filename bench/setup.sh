#!/bin/sh
# Gets what `nearby-bench side-by-side` needs beyond what e2e/setup.sh installs: Redis. On Debian as root it installs what is missing;
# elsewhere it names it, and the bench says NOT RUN for that peer.
set -eu
cd "$(dirname "$0")/.."

say() { echo "bench/setup.sh: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

if ! has redis-server; then
  if has apt-get && [ "$(id -u)" = 0 ]; then
    say "installing redis-server"
    apt-get update -q >&2
    # Of another runlevel, the package does not start a server of its own; the bench starts and ends one.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends redis-server >&2
  else
    say "missing: redis-server (Debian: sudo apt-get install redis-server)"
  fi
fi

# The jars are those of this very pom.xml: a copy of it lies beside them.
libs=${CARGO_TARGET_DIR:-target}/e2e/streams-libs
if ! cmp -s bench/peers/streams/pom.xml "$libs/pom.xml"; then
  if has mvn; then
    say "fetching the jars of bench/peers/streams/pom.xml"
    rm -rf "$libs"
    mkdir -p "$libs"
    # Maven takes the path relative to the pom.
    mvn -q -B -Dstyle.color=never -f bench/peers/streams/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$(realpath "$libs")" >&2
    cp bench/peers/streams/pom.xml "$libs/pom.xml"
  else
    say "missing: mvn, for the jars of Kafka Streams (Debian: sudo apt-get install maven)"
  fi
fi
