#!/usr/bin/env bash
# mac.sh: type-checks Orchard for Macs with Apple Silicon on a machine that is none; more of what is particular to them
# cannot be proved there. Nothing is linked and nothing runs.
#
# Rust's own target does it. The C code of dependencies (AWS-LC, LMDB, mimalloc) is compiled by zig, which PyPI has: it
# brings the headers of macOS. On a Mac, tests/run.sh does all of this and more.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib.sh"

TARGET=aarch64-apple-darwin
ZIG=ziglang==0.17.1

main() {
  cd "$ROOT"
  step "cargo check --target $TARGET"
  [ "$(uname -s)" != Darwin ] || { note "this is a Mac, where all is built anyhow"; return 0; }
  ensure_rust
  have_target || { warn "LEFT OUT: Rust's standard library for $TARGET is not to be had here"; return 0; }
  ensure_packages "compiling C for Macs" python3=python3 python3-pip=python3-pip python3-venv=python3-venv
  TOOLS=$(target_dir)/tools/mac
  mkdir -p "$TOOLS"
  provide_zig || { warn "LEFT OUT: zig is not to be had here"; return 0; }
  CC_aarch64_apple_darwin=$TOOLS/cc AR_aarch64_apple_darwin=$TOOLS/ar cargo check --locked --target "$TARGET" --lib --bins
}

have_target() {
  rustup target list --installed 2>/dev/null | grep -qx "$TARGET" || rustup target add "$TARGET" >/dev/null 2>&1
}

# provide_zig: a virtual environment with ZIG in it, and a C compiler and archiver made of that
provide_zig() {
  if [ "$(cat "$TOOLS/wanted" 2>/dev/null)" != "$ZIG" ]; then
    rm -rf "$TOOLS/zig"
    logged "$TOOLS/zig.log" python3 -m venv "$TOOLS/zig" &&
      logged "$TOOLS/zig.log" "$TOOLS/zig/bin/python" -m pip install --disable-pip-version-check -q "$ZIG" || return 1
    echo "$ZIG" >"$TOOLS/wanted"
  fi
  # What build scripts say of the target is in Apple's words, which zig does not know: it is told once, in its own.
  cat >"$TOOLS/cc" <<EOF
#!/usr/bin/env bash
arguments=() skip=''
for argument in "\$@"; do
  if [ -n "\$skip" ]; then skip=''; continue; fi
  case \$argument in
    --target=* | -mmacosx-version-min=*) ;;
    -target | -arch) skip=1 ;;
    *) arguments+=("\$argument") ;;
  esac
done
exec "$TOOLS/zig/bin/python" -m ziglang cc -target aarch64-macos "\${arguments[@]}"
EOF
  printf '#!/usr/bin/env bash\nexec "%s" -m ziglang ar "$@"\n' "$TOOLS/zig/bin/python" >"$TOOLS/ar"
  chmod +x "$TOOLS/cc" "$TOOLS/ar"
}

main "$@"
