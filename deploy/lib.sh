# shellcheck shell=bash
# What deploy/quickstart.sh, tests/run.sh and .ci/run share: saying what happens, finding and installing packages,
# finding Rust, building the guest image. Sourced, never run; runs on the bash 3.2 of macOS too.
# shellcheck disable=SC2034 # the package lists are used by the scripts that source this

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/sbin:/sbin" # where Debian keeps mkfs.vfat, dropbear, sshd, dockerd

# Packages by their Debian name, each with the program or file that shows it is there (=PROBE): what is there by
# another way than apt is not installed again.
QEMU_PACKAGES="qemu-system-x86=qemu-system-x86_64 qemu-utils=qemu-img"
GUEST_PACKAGES="busybox-static=static-busybox dropbear-bin=dropbear openssh-sftp-server=/usr/lib/openssh/sftp-server
  kmod=depmod cpio=cpio zstd=zstd xz-utils=xz e2fsprogs=debugfs dosfstools=mkfs.vfat mtools=mcopy syslinux=syslinux
  syslinux-common=/usr/lib/syslinux/mbr/mbr.bin perl-base=perl"
[ "$(id -u)" = 0 ] || GUEST_PACKAGES="$GUEST_PACKAGES fakeroot=fakeroot"
# VMs that boot by UEFI: its firmware, and what makes the guest image one that it can boot.
UEFI_PACKAGES="ovmf=uefi-firmware systemd-boot-efi=/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
BUILD_PACKAGES="build-essential=cc"

# ---------------------------------------------------------------- saying what happens
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$(printf '\033[1m') LOUD=$(printf '\033[1;33m') PLAIN=$(printf '\033[0m'); else BOLD='' LOUD='' PLAIN=''; fi
# step TEXT: a heading with the seconds since the script began
step() { printf '%s==> [%3d s] %s%s\n' "$BOLD" "$SECONDS" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '%s!!! %s%s\n' "$LOUD" "$*" "$PLAIN" >&2; }
die() { warn "$@"; exit 1; }
# logged FILE COMMAND…: output goes to FILE; its last lines are shown when the command fails
logged() {
  local log=$1 status=0; shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [ $status = 0 ] || { tail -n 15 "$log" | sed 's/^/    | /' >&2; note "(all of it: $log)" >&2; }
  return $status
}
# bounded SECONDS COMMAND…: ends a command that hangs, where the system has a tool for that (macOS has none)
bounded() {
  if command -v timeout >/dev/null; then timeout --foreground -k 5 "$@"; else shift; "$@"; fi
}

# ---------------------------------------------------------------- packages
present() {
  case $1 in
    # A busybox with shared libraries would not run in the guest's initramfs.
    static-busybox) command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
    uefi-firmware) [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || [ -e /usr/share/OVMF/OVMF_CODE.fd ] ;;
    python3-pip) python3 -m pip --version >/dev/null 2>&1 ;;
    python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null ;;
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}
# missing_packages PACKAGE=PROBE…: prints the packages that are not there
missing_packages() {
  local entry
  for entry in "$@"; do present "${entry#*=}" || printf '%s ' "${entry%%=*}"; done
}
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
}
apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=120 "$@"; }

APT_UPDATED=''
# ensure_packages WHAT-FOR PACKAGE=PROBE…: installs what is missing and nothing else; 1 when that cannot be done
ensure_packages() {
  local purpose=$1 missing; shift
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  step "Installing for $purpose: $missing"
  if ! command -v apt-get >/dev/null; then
    warn "This script installs with apt-get only. Install what your system calls these, then run it again: $missing"; return 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    warn "Not root, and there is no sudo. Have root run: apt-get install --no-install-recommends $missing"; return 1
  fi
  [ "$(id -u)" = 0 ] || [ -t 0 ] || sudo -n true 2>/dev/null || {
    warn "sudo asks for a password and there is no terminal. Run first: sudo apt-get install --no-install-recommends $missing"; return 1; }
  local logs; logs=$(mktemp -d "${TMPDIR:-/tmp}/orchard-packages.XXXXXX")
  [ -n "$APT_UPDATED" ] || logged "$logs/update" apt update || warn "apt-get update failed; trying with the package lists that are there"
  APT_UPDATED=1
  # shellcheck disable=SC2086 # a list of words
  apt_install "$logs" $missing || { warn "Could not install: $missing"; return 1; }
  rm -rf "$logs"
  missing=$(missing_packages "$@")
  [ -z "$missing" ] || { warn "apt-get installed these, but what they should bring is not there: $missing"; return 1; }
}
# apt_install LOG-FOLDER PACKAGE…
apt_install() {
  local logs=$1; shift
  if apt install --no-install-recommends --no-remove "$@" >"$logs/install" 2>&1 </dev/null; then return 0; fi
  # Images for build machines often carry qemu-utils from backports while qemu-system-x86 comes from the release itself;
  # the two cannot stand together, and apt would rather remove the newer one than bring it down unasked.
  local version
  version=$(apt-cache policy qemu-system-x86 2>/dev/null | awk '/Candidate:/{print $2}')
  case " $* " in
    *" qemu-system-x86 "*)
      if [ -n "$version" ] && grep -q 'qemu' "$logs/install"; then
        note "The installed qemu-utils does not fit qemu-system-x86 $version: setting qemu-utils to that version too."
        logged "$logs/install-same" apt install --no-install-recommends --no-remove --allow-downgrades "$@" "qemu-utils=$version"
        return
      fi ;;
  esac
  tail -n 15 "$logs/install" | sed 's/^/    | /' >&2
  return 1
}

# ---------------------------------------------------------------- Rust
# ensure_rust: cargo of the release that rust-toolchain.toml pins, or an end with the way to get it
ensure_rust() {
  local pinned toolchain
  pinned=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")
  command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null || die "Rust is not installed. Get it with
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
    (see https://rustup.rs), open a new terminal and run this again: rustup then fetches Rust $pinned by itself."
  if command -v rustup >/dev/null && [ -z "${RUSTUP_TOOLCHAIN:-}" ] && ! (cd / && rustup toolchain list) 2>/dev/null | grep "^$pinned\(-\| \|\$\)" >/dev/null; then
    # The same release may be there under another name, such as "stable"; that saves a download, or makes do without one.
    for toolchain in $(cd / && rustup toolchain list 2>/dev/null | awk '{print $1}'); do
      case $(cd / && rustc "+$toolchain" --version 2>/dev/null) in
        "rustc $pinned "*) export RUSTUP_TOOLCHAIN=$toolchain; note "Rust $pinned: the installed toolchain $toolchain"; return ;;
      esac
    done
    note "Rust $pinned is not here yet: rustup fetches it"
  fi
  (cd "$ROOT" && cargo --version) >/dev/null || die "Rust $pinned cannot be had; try: rustup toolchain install $pinned --component rustfmt --component clippy"
  case $(cd "$ROOT" && rustc --version) in
    "rustc $pinned "*) ;;
    *) command -v rustup >/dev/null || warn "This Rust is $(rustc --version), and the project is built with $pinned. If the build fails, get rustup: https://rustup.rs" ;;
  esac
}
# target_dir: where cargo puts what it builds, whoever set it (CARGO_TARGET_DIR, a cargo configuration)
target_dir() {
  (cd "$ROOT" && cargo metadata --locked --no-deps --format-version 1) | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# ---------------------------------------------------------------- the guest image
# guest_image FOLDER [NAME KERNEL]: builds FOLDER/tiny.qcow2 (FOLDER/NAME.qcow2 with build.sh's KERNEL) unless the one
# there is of this very script and of all that it can make use of
guest_image() {
  local image=$1/${2:-tiny}.qcow2 kernel=${3:-cloud} key
  # shellcheck disable=SC2086 # a list of words
  key="$(sha256sum "$ROOT/deploy/guest/build.sh" | cut -d' ' -f1) $kernel $(missing_packages $UEFI_PACKAGES)"
  if [ -f "$image" ] && [ "$(cat "$image.key" 2>/dev/null)" = "$key" ]; then
    note "guest image: $image (built earlier)"; return 0
  fi
  mkdir -p "$1"; rm -f "$image.key"
  logged "$image.log" env KERNEL="$kernel" "$ROOT/deploy/guest/build.sh" "$image" || return 1
  echo "$key" >"$image.key"
  note "guest image: $image ($(($(wc -c <"$image") / 1048576)) MiB)"
}
