#!/usr/bin/env bash
# package.sh: the Debian package of this machine's architecture, out of Cargo.toml's [package.metadata.deb], by cargo-deb.
set -euo pipefail
usage() {
  cat <<'T'
usage: deploy/package.sh [--debug] [--revision N] FILE.deb

  --debug       package the unoptimised program, which is built in a fraction of the time; for tests
  --revision N  of the package, for another one of the same release (default 1)
T
}
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
CARGO_DEB=3.8.0

PROFILE=release REVISION=1 OUT=''
while [ $# -gt 0 ]; do
  case $1 in
    --debug) PROFILE=debug; shift ;;
    --revision) [ $# -gt 1 ] || { usage >&2; exit 2; }; REVISION=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$OUT" ] || { usage >&2; exit 2; }; OUT=$1; shift ;;
  esac
done
[ -n "$OUT" ] || { usage >&2; exit 2; }
case $OUT in /*) ;; *) OUT=$PWD/$OUT ;; esac

cd "$ROOT"
ensure_rust
# dpkg-shlibdeps says which libraries the program needs; strip takes the debug information out of it.
# shellcheck disable=SC2086 # lists of words
ensure_packages "building the package" $BUILD_PACKAGES dpkg-dev=dpkg-shlibdeps || die "The package cannot be built here."
target=$(target_dir)
tools=$target/tools
if [ "$("$tools/bin/cargo-deb" --version 2>/dev/null)" != "cargo-deb $CARGO_DEB" ]; then
  step "Installing for building the package: cargo-deb $CARGO_DEB"
  # in target, so that it is built once; without optimisation, as it has little to do
  logged "$tools/cargo-deb.log" cargo install --locked --debug --quiet --root "$tools" "cargo-deb@$CARGO_DEB" || die "cargo-deb cannot be had."
fi
if [ $PROFILE = release ]; then cargo build --locked --release --quiet; else cargo build --locked --quiet; fi

# What the program itself prints: its pages of the manual, and how shells complete it.
made=$target/$PROFILE/package
rm -rf "$made"
mkdir -p "$made/man1" "$made/completions"
orchard=$target/$PROFILE/orchard
"$orchard" man --dir "$made/man1"
gzip -9 --no-name "$made"/man1/*.1
"$orchard" completion bash >"$made/completions/orchard.bash"

how=''
[ $PROFILE = release ] || how="--profile dev --fast" # it is large, and for a look only
# shellcheck disable=SC2086 # a list of words
PATH=$tools/bin:$PATH logged "$made/log" cargo deb --no-build --strip --no-dbgsym --compress-system $how --deb-revision "$REVISION" --output "$OUT"
note "$OUT ($(($(wc -c <"$OUT") / 1048576)) MiB)"
