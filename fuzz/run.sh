#!/bin/sh
# Runs each target of `make fuzz` for so many seconds, and adds to the corpus what took edges that nothing in it had taken. What
# breaks a target is written to fuzz/found, and the run ends with an error.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
built=${CARGO_TARGET_DIR:-target}/debug
mkdir -p fuzz/found
for target in client_frame body record; do
  program=$built/fuzz-$(echo "$target" | tr _ -)
  corpus=fuzz/corpus/$target
  new=$(mktemp -d)
  dictionary=-dict=fuzz/json.dict
  [ "$target" != record ] || dictionary=
  echo "fuzz: $target for $seconds s, from $(ls "$corpus" | wc -l) kept inputs" >&2
  log=$new.log
  # shellcheck disable=SC2086 # none is no argument
  "$program" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=fuzz/found/ $dictionary "$new" "$corpus" >"$log" 2>&1 || { tail -n 40 "$log"; exit 1; }
  "$program" -set_cover_merge=1 -use_counters=0 "$corpus" "$new" >>"$log" 2>&1
  grep -E '^#[0-9]+ +DONE|number_of_executed_units|peak_rss_mb' "$log" | sed "s/^/fuzz: $target: /"
  echo "fuzz: $target: nothing found; $(ls "$corpus" | wc -l) inputs kept" >&2
  rm -rf "$new" "$log"
done
rmdir fuzz/found
