#!/bin/sh
# Gets what the end-to-end tests need: Java, Maven, Chromium, Postgres, docker-compose, and Kafka's jars; and the headers of
# OpenSSL, which the build needs.
# On Debian as root it installs the packages that are missing; elsewhere it names them. A second run finds all there.
set -eu
cd "$(dirname "$0")/.."

say() { echo "e2e/setup.sh: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
  has java || echo default-jre-headless
  has mvn || jars_are_there || echo maven
  has chromium || has chromium-browser || has google-chrome || echo chromium
  has initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql
  has psql || echo postgresql-client
  # It checks docker-compose.yml, and runs without Docker's engine. The health checks in that file are curl's.
  has docker-compose || echo docker-compose
  has curl || echo curl
  has pkg-config || echo pkg-config
  pkg-config --exists openssl 2>/dev/null || echo libssl-dev
}

# The Postgres package makes a cluster and starts it at once; the tests make their own. So: not during this installation.
no_main_cluster=/etc/postgresql-common/createcluster.d/nearby-e2e.conf

install() {
  say "installing" "$@"
  mkdir -p "$(dirname "$no_main_cluster")"
  trap 'rm -f "$no_main_cluster"' EXIT
  echo "create_main_cluster = false" >"$no_main_cluster"
  apt-get update -q >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2
  rm -f "$no_main_cluster"
}

jars=${CARGO_TARGET_DIR:-target}/e2e/kafka-libs

# The jars are those of this very pom.xml: a copy of it lies beside them.
jars_are_there() { cmp -s e2e/kafka/pom.xml "$jars/pom.xml"; }

fetch_jars() {
  say "fetching Kafka's jars"
  mkdir -p "$(dirname "$jars")"
  new=$(mktemp -d "$jars.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  # Maven takes the path relative to the pom.
  mvn -q -B -Dstyle.color=never -f e2e/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$(realpath "$new")" >&2
  cp e2e/kafka/pom.xml "$new/pom.xml"
  chmod 755 "$new"
  rm -rf "$jars"
  mv "$new" "$jars"
}

missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
  if has apt-get && [ "$(id -u)" = 0 ]; then
    # shellcheck disable=SC2086 # one word a package
    install $missing
  else
    say "missing, by the names of Debian's packages: $missing"
    say "on Debian or Ubuntu: sudo apt-get install --no-install-recommends $missing"
    say "elsewhere: install Java 17 or newer, Maven, Chromium, PostgreSQL, docker-compose, curl, pkg-config and the headers of OpenSSL,"
    say "so that java, keytool, mvn, chromium, postgres, initdb, psql, docker-compose, curl and pkg-config are on the PATH"
    exit 1
  fi
fi

java_version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
if [ "${java_version:-0}" -lt 17 ]; then
  say "java is version ${java_version:-unknown}; Kafka needs 17 or newer (Debian: default-jre-headless)"
  exit 1
fi

jars_are_there || fetch_jars
