#!/usr/bin/env bash
# image.sh: the container image of the controller, out of what is on this machine: Orchard from this clone, the libraries that
# it needs and the list of public CAs. Nothing is downloaded, so it works without a registry.
set -euo pipefail
usage() {
  cat <<'T'
usage: deploy/image.sh [--debug] [--base IMAGE] NAME[:TAG]

  --debug       take the unoptimised program, which is built in a fraction of the time; for tests
  --base IMAGE  lay it on this image in place of an empty one
T
}
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PROFILE=release BASE=scratch NAME=''
while [ $# -gt 0 ]; do
  case $1 in
    --debug) PROFILE=debug; shift ;;
    --base) [ $# -gt 1 ] || { usage >&2; exit 2; }; BASE=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) [ -z "$NAME" ] || { usage >&2; exit 2; }; NAME=$1; shift ;;
  esac
done
[ -n "$NAME" ] || { usage >&2; exit 2; }

cd "$ROOT"
ensure_rust
# shellcheck disable=SC2086 # a list of words
ensure_packages "building the image" $BUILD_PACKAGES ca-certificates=/etc/ssl/certs/ca-certificates.crt || die "The image cannot be built here."
if [ $PROFILE = release ]; then cargo build --locked --release --quiet; else cargo build --locked --quiet; fi

umask 022 # what is copied is read by a user who is not root
context=$(mktemp -d "${TMPDIR:-/tmp}/orchard-image.XXXXXX")
trap 'rm -rf "$context"' EXIT
root=$context/rootfs
mkdir -p "$root/etc" "$root/usr/bin" "$context/state/orchard"
chmod 755 "$context" "$root"
chmod 700 "$context/state/orchard"
strip -o "$root/usr/bin/orchard" "$(target_dir)/$PROFILE/orchard"
chmod 755 "$root/usr/bin/orchard"
# with the loader, which ldd shows too
ldd "$root/usr/bin/orchard" | { grep -oE '/[^ ]+\.so[^ ]*' || true; } | while read -r library; do
  install -D -m 755 "$(realpath "$library")" "$root$library"
done
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
echo 'orchard:x:65532:65532:Orchard:/var/lib/orchard:/sbin/nologin' >"$root/etc/passwd"
echo 'orchard:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
logged "$context/log" docker build --build-arg "BASE=$BASE" --tag "$NAME" --file deploy/Dockerfile "$context"
note "$NAME ($(($(docker image inspect --format '{{.Size}}' "$NAME") / 1048576)) MiB)"
