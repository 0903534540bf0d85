#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of `make fuzz`: compiles our own crates so that libFuzzer sees which of their edges were taken. The
# flags are those of cargo-fuzz without a sanitizer, and the pinned compiler takes them. Others' crates stay as they are.
set -eu
exec "$@" -Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing \
  -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
