#!/usr/bin/env bash
# tests/fuzz/run.sh [SECONDS] [TARGET...]
# tests/fuzz/run.sh TARGET FILE          once more, with an input that broke it
# tests/fuzz/run.sh --help               this text
#
# Fuzzes the broker's core with libFuzzer and the stable compiler: builds the targets (parser, session, matcher; all unless
# told) with coverage instrumentation and runs each for SECONDS (30 unless told). What it reaches stays in fuzz/corpus/TARGET
# under cargo's target directory, and the next run begins from it. An input that breaks something is written to
# fuzz/artifacts/TARGET there, and the run fails; its last lines are shown, all of them are in fuzz/TARGET.log.
#
# The long run, each target on every core for eight hours, without being in others' way:
#   FUZZ_JOBS=$(nproc) nice tests/fuzz/run.sh 28800
# or ten minutes of one target on one core:
#   FUZZ_JOBS=1 tests/fuzz/run.sh 600 session
#
# A run without FUZZ_JOBS draws from a fixed seed (FUZZ_SEED, 1 unless told), so that a change is not failed by an older
# fault that only its dice have found; with FUZZ_JOBS it draws anew each time.
#
# After a find: run it once more (second line), put what it is about into a test beside the code, mend it, and add the
# input to tests/fuzz/seeds/TARGET if nothing there is like it. A seed is plain input with the target's choices as its last
# bytes (user, bounds, authentication).
#
# The folder is laid out for cargo-fuzz too, for those who have it:
#   cargo +nightly fuzz run --fuzz-dir tests/fuzz parser
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"
cd "$ROOT"
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /{s/^# \{0,1\}//p;}' tests/fuzz/run.sh
    exit 0
    ;;
esac
ensure_rust

AGAIN=''
if [ $# = 2 ] && [ -f "tests/fuzz/fuzz_targets/$1.rs" ] && [ -f "$2" ]; then
  AGAIN=$2
  set -- 0 "$1"
fi

SECONDS_EACH=${1:-30}
case $SECONDS_EACH in *[!0-9]*) die "$SECONDS_EACH is neither a number of seconds nor a target with a file: see tests/fuzz/run.sh --help" ;; esac
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

if [ -n "$AGAIN" ]; then
  step "$AGAIN once more"
  exec "$FOLDER/$HOST/release/${TARGETS[0]}" "$AGAIN"
fi

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
  # The first is the one job's last word, the second the last report of several.
  note "$(grep -E '^stat::number_of_executed_units|^#[0-9]+: cov:' "$FOLDER/$target.log" | tail -n 1)"
done
