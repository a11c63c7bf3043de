#!/usr/bin/env bash
# tests/fuzz/run.sh [SECONDS] [TARGET...]: builds the fuzz targets with coverage instrumentation and runs each for SECONDS
# (30 unless told). What it finds stays in the folder `corpus` under the target directory, and the next run begins from it;
# an input that breaks something is written to `artifacts` there, and the run fails.
#
# The long run, one target on every core for eight hours:
#   FUZZ_JOBS=$(nproc) tests/fuzz/run.sh 28800 parser
# Once more with an input that broke it: <target directory>/x86_64-unknown-linux-gnu/release/parser FILE
#
# The short run draws from a fixed seed (FUZZ_SEED, 1 unless told), so that a change is not failed by an older fault that
# only its dice have found; the long run draws anew each time.
#
# It drives libFuzzer with the stable compiler. The folder is laid out for cargo-fuzz too, for those who have it:
#   cargo +nightly fuzz run --fuzz-dir tests/fuzz parser
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"
cd "$ROOT"
ensure_rust

SECONDS_EACH=${1:-30}
[ $# -eq 0 ] || shift
TARGETS=("$@")
[ $# -gt 0 ] || TARGETS=(parser session matcher)

if ! command -v c++ >/dev/null; then
  warn "SKIPPED: fuzzing needs a C++ compiler (c++), for libFuzzer"
  exit 0
fi
HOST=$(rustc -vV | sed -n 's/^host: //p')
FOLDER=$(target_dir)/fuzz
mkdir -p "$FOLDER"

step "Building the fuzz targets"
# What cargo-fuzz passes, but for the sanitizer: there is no unsafe code in what is fuzzed.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
  cargo build --locked --release --manifest-path tests/fuzz/Cargo.toml --target "$HOST" --target-dir "$FOLDER" ||
  die "The fuzz targets do not build (see above)."

for target in "${TARGETS[@]}"; do
  step "Fuzzing $target for $SECONDS_EACH s"
  mkdir -p "$FOLDER/corpus/$target" "$FOLDER/artifacts/$target"
  jobs=()
  if [ -n "${FUZZ_JOBS:-}" ]; then jobs=("-fork=$FUZZ_JOBS"); else jobs=("-seed=${FUZZ_SEED:-1}"); fi
  "$FOLDER/$HOST/release/$target" "$FOLDER/corpus/$target" "tests/fuzz/seeds/$target" \
    -max_total_time="$SECONDS_EACH" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="$FOLDER/artifacts/$target/" "${jobs[@]}" >"$FOLDER/$target.log" 2>&1 || {
    tail -n 40 "$FOLDER/$target.log" | sed 's/^/    | /' >&2
    die "$target broke; the input is under $FOLDER/artifacts/$target"
  }
  note "$(grep -E '^stat::number_of_executed_units' "$FOLDER/$target.log" || tail -n 1 "$FOLDER/$target.log")"
done
