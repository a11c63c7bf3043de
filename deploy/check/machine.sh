#!/usr/bin/env bash
# machine.sh SCRIPT FILE…: a machine of its own, in which SCRIPT of this folder goes through a page for people, with these files
# (or folders) and the pages. Called by deploy/check.sh, as root.
#
# The machine is a container in which systemd itself is process 1 (systemd-nspawn). Its disk is this machine's, by overlayfs
# with all that is written in memory: nothing is downloaded, and nothing of it is left here. It has no network but its own
# loopback interface, to which all names that the pages have for machines lead.
set -euo pipefail
SCRIPT=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LIMIT=200 # seconds

# A mount namespace of its own: all mounts are gone with this process, however it ends.
if [ "${ORCHARD_CHECK_APART:-}" != "$$" ]; then
  folder=$(mktemp -d "${TMPDIR:-/tmp}/orchard-machine.XXXXXX")
  status=0
  # shellcheck disable=SC2016 # for the inner shell, whose process id it is
  MACHINE=$folder unshare --mount bash -c 'export ORCHARD_CHECK_APART=$$; exec bash "$0" "$@"' "${BASH_SOURCE[0]}" "$@" || status=$?
  rmdir "$folder"
  exit $status
fi

: "${MACHINE:?}"
mount -t tmpfs -o size=6g,mode=755 orchard-machine "$MACHINE" || { echo "no file system in memory can be had here" >&2; exit 3; }
mkdir "$MACHINE"/{upper,work,root,shared}
mount -t overlay overlay -o "lowerdir=/,upperdir=$MACHINE/upper,workdir=$MACHINE/work" "$MACHINE/root" ||
  { echo "overlayfs cannot be laid over / here" >&2; exit 3; }
root=$MACHINE/root
cp -rL "${@:2}" "$here/page.sh" "$here/$SCRIPT" "$MACHINE/shared/"
mkdir "$MACHINE/shared/pages"
(cd "$here/../.." && cp --parents README.md deploy/README.md deploy/examples/README.md "$MACHINE/shared/pages/")
chmod -R u=rwX,go=rX "$MACHINE/shared"
# Nothing of what this machine starts by itself is started there, and it is another machine.
rm -rf "$root"/etc/systemd/system/*.wants
: >"$root/etc/machine-id"
echo ctl >"$root/etc/hostname"
printf '127.0.0.1 localhost ctl ctl.example.com mini-1 nats.example.com\n' >"$root/etc/hosts"
cat >"$root/etc/systemd/system/page.service" <<U
[Unit]
After=basic.target systemd-tmpfiles-setup.service
[Service]
Type=oneshot
ExecStart=/bin/bash /shared/$SCRIPT
StandardOutput=file:/shared/log
StandardError=inherit
ExecStopPost=/bin/sh -c 'echo "\$EXIT_STATUS" >/shared/status; systemctl exit --force'
U
# Which hypervisor has the KVM here cannot be seen from within: that machine's /sys has no modules.
accel=''; [ ! -e /sys/module/kvm_pvm ] || accel=tcg
printf '%s' "${ORCHARD_QEMU_ACCEL:-$accel}" >"$MACHINE/shared/accel"
[ ! -c /dev/kvm ] || : >"$MACHINE/shared/kvm"
# The unified hierarchy, as on every system of today: with the older one DeviceAllow would not be heeded in a container.
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --foreground -k 5 $LIMIT \
  systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --private-network --capability=all \
  --bind="$MACHINE/shared:/shared" --tmpfs=/root:mode=700 --boot -- --unit=page.service \
  </dev/null >"$MACHINE/console" 2>&1 || true
cat "$MACHINE/shared/log" 2>/dev/null || true
status=$(cat "$MACHINE/shared/status" 2>/dev/null || true)
# Without a word of the page the machine never came so far: no containers of systemd's on this one.
[ -e "$MACHINE/shared/log" ] || [ -n "$status" ] || { tail -n 20 "$MACHINE/console" >&2; exit 3; }
[ "$status" = 0 ] || { tail -n 20 "$MACHINE/console" >&2; echo "the machine ended with status ${status:-none} (limit: $LIMIT s)" >&2; exit 1; }
