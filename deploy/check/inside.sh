#!/usr/bin/env bash
# inside.sh: what machine.sh does in its machine, where this is /shared/inside.sh: goes through deploy/README.md, running its
# commands as they stand there, and looks between them at what they should have brought about.
set -euo pipefail
# shellcheck source=deploy/check/page.sh
. /shared/page.sh
PAGE=deploy/README.md
explain() { journalctl --no-pager --lines 40 --unit 'orchard-*' >&2; }
# the one QEMU that runs, by its process id
vm_process() { pgrep -u orchard-worker --full 'qemu-system-.*guest=first' || die "no QEMU runs as orchard-worker"; }
online() { admin list workers | grep -q ' online '; }
in_vm() { timeout 60 orchard ssh vm first "$@"; }

# The other machine of the page is this one, too.
cat >/usr/local/bin/ssh <<'S'
#!/bin/sh
shift
exec sh -c "$*"
S
chmod 755 /usr/local/bin/ssh
install -D -m 644 /shared/*.qcow2 /srv/images/debian.qcow2
cp /shared/*.deb orchard.deb

# ---------------------------------------------------------------- install
as_written 'Install' 2
[ "$(stat -c %U:%a /etc/orchard/controller.env)" = root:600 ] || die "controller.env may hold a token, and others may read it"
systemctl is-active --quiet orchard-controller && die "installing started the controller"
systemd-analyze verify --man=no orchard-controller.service orchard-worker.service || die "the installed units are not sound"
man --where orchard >/dev/null 2>&1 || [ -s /usr/share/man/man1/orchard.1 ] || [ -s /usr/share/man/man1/orchard.1.gz ] || die "no page of the manual"

[ -z "$ACCEL" ] || echo "ORCHARD_QEMU_ACCEL=$ACCEL" >>/etc/orchard/worker.env
[ ! -e /dev/kvm ] || chgrp kvm /dev/kvm

as_written 'The controller' 1
said 'the controller is up'
as_written 'The controller' 2
as_written 'The controller' 3
as_written 'The controller' 4
[ "$(stat -c %U:%G:%a /var/lib/orchard)" = orchard:orchard:700 ] || die "others may enter /var/lib/orchard"

as_written 'Workers' 1
wait_until 60 online
as_written 'Workers' 2
said 'mini-1\|ctl'
as_written 'Workers' 3
said ' ready'
said ' first '
process=$(vm_process)
say "QEMU is process $process; acceleration: $(journalctl --no-pager --unit orchard-worker --grep 'QEMU runtime' --output cat | grep -o 'accel=[a-z]*' | tail -n 1)"

# ---------------------------------------------------------------- what the units promise
for unit in orchard-controller orchard-worker; do
  pid=$(systemctl show --property MainPID --value $unit)
  grep -q '^CapEff:.*0000000000000000$' "/proc/$pid/status" || die "$unit has capabilities"
  grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status" || die "$unit may gain rights"
  grep -q '^Seccomp:.*2$' "/proc/$pid/status" || die "$unit may make all system calls"
done
nsenter --target "$process" --mount sh -c '! touch /etc/x && ! ls /home/* && touch /tmp/x' >/dev/null 2>&1 ||
  die "the VM's process sees more of the host than it should, or has no /tmp"
[ ! -c /dev/kvm ] || nsenter --target "$process" --mount test -c /dev/kvm || die "the VM's process has no /dev/kvm"

# VMs outlive the worker: a restart, a kill, a stop with a start.
systemctl restart orchard-worker
wait_until 60 online
systemctl kill --kill-whom=main --signal KILL orchard-worker
wait_until 60 systemctl is-active --quiet orchard-worker
systemctl stop orchard-worker
[ "$(vm_process)" = "$process" ] || die "stopping the worker ended its VM"
systemctl start orchard-worker
wait_until 60 in_vm uname -a
[ "$(vm_process)" = "$process" ] || die "the worker started another VM"
say "the VM lives on over a restart, a kill and a stop of its worker"

# ---------------------------------------------------------------- what a drop-in lets VMs do
# A card on a bridge of the host: without the right to make one the VM says so, with the drop-in of the page it has it.
chmod 666 /dev/net/tun
ip link add br0 type bridge
install -D -m 644 <(echo allow br0) /etc/qemu/bridge.conf
bridged() { timeout 120 orchard create vm bridged --image /srv/images/debian.qcow2 --cpu 1 --memory 256 --net-bridged br0 --wait >/tmp/said 2>&1; }
if bridged; then die "the unit lets VMs onto bridges"; fi
said 'may make no network cards'
orchard delete vm bridged
mkdir -p /etc/systemd/system/orchard-worker.service.d
# shellcheck disable=SC2016 # backticks of the page
dropin=$(sed -n 's/^| `--net-bridged br0` | `\(.*\)`, `\(.*\)`; and .*/[Service]\n\1\n\2/p' "/shared/pages/$PAGE")
[ -n "$dropin" ] || die "the page has no drop-in for --net-bridged"
echo "$dropin" >/etc/systemd/system/orchard-worker.service.d/bridge.conf
systemctl daemon-reload
systemctl restart orchard-worker
wait_until 60 online
bridged || { cat /tmp/said >&2; die "the drop-in of the page does not let VMs onto bridges"; }
orchard delete vm bridged
rm -r /etc/systemd/system/orchard-worker.service.d
systemctl daemon-reload
say "VMs get onto a bridge by the drop-in of the page, and not without"

# ---------------------------------------------------------------- upgrade, backup, restore
as_written 'Upgrade'
said 'controller '
systemctl is-active --quiet orchard-controller orchard-worker || die "not all runs after the upgrade"
wait_until 60 in_vm true
[ "$(vm_process)" = "$process" ] || die "the upgrade ended the VM"
as_written 'Backup and restore' 1
[ "$(stat -c %a /backup/orchard-1)" = 600 ] || die "others may read the backup"
as_written 'Backup and restore' 2
wait_until 60 in_vm true
[ "$(vm_process)" = "$process" ] || die "restoring the backup ended the VM"
say "the VM lives on over an upgrade and a restored backup"

# Wrong options are not tried again and again.
cp /etc/orchard/worker.env /etc/orchard/worker.env.kept
echo 'ORCHARD_WORKER_OPTIONS=--no-such-option' >>/etc/orchard/worker.env
systemctl restart orchard-worker || true
wait_until 20 systemctl is-failed --quiet orchard-worker
mv /etc/orchard/worker.env.kept /etc/orchard/worker.env
systemctl restart orchard-worker
wait_until 60 online

# ---------------------------------------------------------------- away with it
as_written 'Taking it away'
said '/var/lib/orchard is kept'
for gone in /usr/bin/orchard /etc/orchard /usr/lib/systemd/system/orchard-worker.service; do
  [ ! -e $gone ] || die "purging left $gone"
done
[ -d /var/lib/orchard/controller ] || die "purging took the cluster's keys"
pgrep -u orchard-worker --full '^[^ ]*qemu-system-' >/dev/null && die "purging left a VM"
say "installed, used, upgraded, restored and purged"
