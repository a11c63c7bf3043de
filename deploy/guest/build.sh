#!/bin/bash
# build.sh OUT.qcow2: builds a tiny bootable Linux disk image out of installed Debian or Ubuntu packages, in 2 to 5 s.
# Called by deploy/quickstart.sh and tests/run.sh (through deploy/lib.sh, which installs the packages first).
#
# The result is ONE file (qcow2, about 18 MB): MBR + SYSLINUX + kernel + initramfs on a FAT partition, and an
# ext4 root that grows to the size of the disk at boot. It boots with SeaBIOS from a virtio-blk disk, on the
# pc or q35 machine, in 128 MB. SSH server on port 22, user admin, password admin.
#
# Uses no loop device, no mount, no KVM, and needs no root (re-executes itself under fakeroot).
# The same packages give the same image, bit for bit, whoever builds it.
# The kernel: linux-image-cloud-amd64 if it is installed, else its package (on Ubuntu linux-image-virtual) is fetched
# with apt-get download and unpacked.
#
# Environment: SIZE_MB (96) virtual size;  KVER kernel version (newest *-cloud-amd64 in /boot);
#   FETCH_KERNEL=1 do not use the installed kernel;  BOOTDIR (/boot)  MODROOT (/) where vmlinuz-KVER and
#   lib/modules/KVER lie;  EXTRA_BINS="bash curl" more programs;  COMPRESS zstd|zlib|none (zstd);
#   CMDLINE kernel command line;  KEEP_KERNEL=1 also writes OUT.vmlinuz and OUT.initrd
set -euo pipefail
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000} PATH=$PATH:/usr/sbin:/sbin
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH
umask 022 # the guest's folders get their modes from it
die() { echo "build.sh: $*" >&2; exit 1; }
[ $# = 1 ] || die "usage: build.sh OUT.qcow2"
OUT=$(realpath -m "$1")

# ---------------------------------------------------------------- what it needs
[ "$(uname -sm)" = "Linux x86_64" ] || die "this image is built on x86_64 Linux only, and this is $(uname -sm)"
missing=()
need() { local package=$1 f; shift; for f in "$@"; do [ -e "$f" ] || command -v "$f" >/dev/null || { missing+=("$package"); return 0; }; done; }
# Ubuntu's and Debian's plain busybox needs shared libraries, which the initramfs does not have.
{ command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1; } || missing+=(busybox-static)
need dropbear-bin dropbear dropbearkey
need openssh-sftp-server /usr/lib/openssh/sftp-server
need kmod modprobe depmod
need cpio cpio
need zstd zstd
need xz-utils xz
need e2fsprogs mke2fs debugfs dumpe2fs resize2fs
need dosfstools mkfs.vfat
need mtools mcopy
need syslinux syslinux
need syslinux-common /usr/lib/syslinux/mbr/mbr.bin
need qemu-utils qemu-img
need perl-base perl
[ "$(id -u)" = 0 ] || need fakeroot fakeroot
[ ${#missing[@]} = 0 ] || die "these Debian packages are missing: ${missing[*]}
  apt-get install --no-install-recommends ${missing[*]}"
[ "$(id -u)" = 0 ] || [ -n "${FAKEROOTKEY:-}" ] || exec fakeroot -- "$0" "$@"

SIZE_MB=${SIZE_MB:-96}; FAT_MB=${FAT_MB:-19}; COMPRESS=${COMPRESS:-zstd}; BOOTDIR=${BOOTDIR:-/boot}; MODROOT=${MODROOT:-/}
BUSYBOX=$(command -v busybox)
WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT
newest() { { ls -1 "$1"/vmlinuz-* 2>/dev/null || true; } | sed 's,.*/vmlinuz-,,' | { grep -E -e "$2" || true; } | sort -V | tail -1; }

# ---------------------------------------------------------------- kernel
# fetch_kernel: unpacks the kernel made for virtual machines here, without installing it (its postinst would build an
# initrd for this host). Debian keeps the modules in the image's package, Ubuntu in one of their own.
fetch_kernel() {
  local meta image release
  for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-amd64; do
    image=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-[0-9]/{print $2; exit}')
    [ -z "$image" ] || break
  done
  [ -n "$image" ] || die "apt knows no kernel package (looked for linux-image-cloud-amd64 and linux-image-virtual): run apt-get update"
  release=${image#linux-image-}; release=${release#unsigned-}
  local packages=("$image")
  apt-cache show "linux-modules-$release" >/dev/null 2>&1 && packages+=("linux-modules-$release")
  (cd "$WORK" && apt-get -qq download "${packages[@]}" 2>apt.log) || { cat "$WORK/apt.log" >&2; die "cannot fetch ${packages[*]}: run apt-get update, then try again"; }
  local deb; for deb in "$WORK"/linux-*.deb; do dpkg-deb -x "$deb" "$WORK/kernel"; done
}
KVER=${KVER:-$([ -n "${FETCH_KERNEL:-}" ] || newest "$BOOTDIR" '-cloud-amd64$')}
if [ -z "$KVER" ]; then
  fetch_kernel; BOOTDIR=$WORK/kernel/boot MODROOT=$WORK/kernel; KVER=$(newest "$BOOTDIR" .)
fi
[ -r "$BOOTDIR/vmlinuz-$KVER" ] || die "cannot read $BOOTDIR/vmlinuz-$KVER: set FETCH_KERNEL=1 to use the packaged kernel"
[ -e "$MODROOT/lib/modules" ] || [ ! -d "$MODROOT/usr/lib/modules" ] || ln -s usr/lib "$MODROOT/lib" # newer packages
[ -e "$MODROOT/lib/modules/$KVER/modules.dep" ] || depmod -b "$MODROOT" "$KVER"
KERNEL=$BOOTDIR/vmlinuz-$KVER
CMDLINE=${CMDLINE:-"root=/dev/vda1 console=ttyS0 console=tty0 quiet mitigations=off random.trust_cpu=on no_timer_check panic=5"}

# kmods NAME... : files of the modules and of those they need, in load order; a name the kernel lacks is left out
kmods() { for m in "$@"; do modprobe -d "$MODROOT" -S "$KVER" --show-depends "$m" 2>/dev/null | awk '$1=="insmod"{print $2}' || true; done | awk '!s[$0]++'; }
# putmod FILE DEST : a module as the kernel reads it, unpacked if the package has it packed; DEST without .xz, .zst, .gz
putmod() {
  mkdir -p "$(dirname "$2")"
  case $1 in *.xz) xz -dc "$1" > "$2";; *.zst) zstd -qdc "$1" > "$2";; *.gz) gzip -dc "$1" > "$2";; *) cat "$1" > "$2";; esac
  chmod 644 "$2"
}
plain() { sed -E 's/\.(xz|zst|gz)$//' <<<"$1"; }
# addbin TREE FILE : a program and the shared libraries it needs
addbin() {
  install -D -m755 "$2" "$1$2"
  { env -u LD_PRELOAD ldd "$2" 2>/dev/null || true; } | { grep -oE '/[^ ]+\.so[^ ]*' || true; } | while read -r l; do
    [ -e "$1$l" ] || install -D -m755 "$(realpath "$l")" "$1$l"; done
}

# ---------------------------------------------------------------- initramfs
I=$WORK/initramfs; mkdir -p "$I"/{bin,dev,proc,sys,newroot,mod}
install -m755 "$BUSYBOX" "$I/bin/busybox"; ln -s busybox "$I/bin/sh"
n=10; kmods crc32c_generic ext4 virtio_pci virtio_blk | while read -r f; do putmod "$f" "$I/mod/$n-$(plain "$(basename "$f")")"; n=$((n+1)); done
cat > "$I/init" <<'E'
#!/bin/sh
export PATH=/bin; b=busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
for m in /mod/*.ko; do $b insmod $m; done
i=0; while [ ! -b /dev/vda1 ] && [ $i -lt 200 ]; do $b usleep 50000; i=$((i+1)); done
# The disk may be larger than the image was built: patch the sector count of partition 1 in the MBR (offset 446+12).
read total < /sys/block/vda/size; read start < /sys/block/vda/vda1/start; read have < /sys/block/vda/vda1/size
want=$((total-start)); [ $want -gt 4294967295 ] && want=4294967295
if [ $want -gt $((have+2048)) ]; then
  $b printf "$($b printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((want&255)) $((want>>8&255)) $((want>>16&255)) $((want>>24&255)))" |
    $b dd of=/dev/vda bs=1 seek=458 conv=notrunc 2>/dev/null
  $b blockdev --rereadpt /dev/vda; : > /dev/.grow
fi
$b mount -t ext4 -o rw,noatime /dev/vda1 /newroot || { echo "cannot mount /dev/vda1"; exec sh; }
$b mount --move /dev /newroot/dev; $b umount /proc; $b umount /sys
exec $b switch_root /newroot /sbin/init
E
chmod 755 "$I/init"
find "$I" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
(cd "$I" && find . | sort | cpio --quiet -o -H newc -R 0:0 --reproducible) | zstd -q -19 > "$WORK/initrd.img"

# ---------------------------------------------------------------- root file system
R=$WORK/root
mkdir -p "$R"/{bin,sbin,usr/bin,usr/sbin,etc/init.d,etc/dropbear,etc/acpi/PWRF,dev,proc,sys,run,tmp,root,home/admin,mnt,var/log,var/lib/cloud}
ln -s /run "$R/var/run"; chmod 1777 "$R/tmp"; chmod 700 "$R/root"; chown 1000:1000 "$R/home/admin"
install -m755 "$BUSYBOX" "$R/bin/busybox"
chmod 4755 "$R/bin/busybox"   # setuid: BusyBox keeps it for su only; root has no password, so su and sudo ask none (dropbear refuses empty ones)
"$BUSYBOX" --list-full | while read -r f; do mkdir -p "$R/$(dirname "$f")"; [ -e "$R/$f" ] || ln -s /bin/busybox "$R/$f"; done
addbin "$R" /usr/sbin/dropbear; addbin "$R" /usr/bin/dropbearkey; addbin "$R" /sbin/resize2fs
addbin "$R" /usr/lib/openssh/sftp-server; ln -s openssh/sftp-server "$R/usr/lib/sftp-server"
for b in ${EXTRA_BINS:-}; do addbin "$R" "$(command -v "$b")"; done
kmods virtio_net virtio-rng virtio_balloon virtio_console button evdev virtiofs 9pnet_virtio 9p isofs vfat nls_cp437 nls_ascii | while read -r f; do
  putmod "$f" "$R/lib/modules/$(plain "${f##*/lib/modules/}")"; done
depmod -b "$R" "$KVER" 2>/dev/null || true; rm -f "$R/lib/modules/$KVER"/modules.{symbols,builtin,devname}* "$R/lib/modules/$KVER"/*.bin
printf 'root:x:0:0:root:/root:/bin/sh\nadmin:x:1000:1000:admin:/home/admin:/bin/sh\n' > "$R/etc/passwd"
printf 'root::19000:0:99999:7:::\nadmin:%s:19000:0:99999:7:::\n' "$(perl -e 'print crypt("admin", q{$6$tinyguest$})')" > "$R/etc/shadow"; chmod 600 "$R/etc/shadow"
printf 'root:x:0:\ntty:x:5:admin\nadmin:x:1000:\n' > "$R/etc/group"
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' > "$R/etc/nsswitch.conf"
printf '/bin/sh\n/bin/ash\n/bin/bash\n' > "$R/etc/shells"; echo tinyguest > "$R/etc/hostname"; echo '127.0.0.1 localhost' > "$R/etc/hosts"
printf 'Tiny guest \\n on \\l: log in as admin / admin\n\n' > "$R/etc/issue"
printf 'export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin PS1="\\u@\\h:\\w\\$ "\n' > "$R/etc/profile"
: > "$R/var/log/lastlog"
cat > "$R/usr/bin/sudo" <<'E'
#!/bin/sh
# sudo [-n|-E|-H|-S] CMD ARG...
while :; do case "$1" in -[nEHS]) shift;; --) shift; break;; -i|-s) shift; [ $# = 0 ] && exec su -l root; break;; *) break;; esac; done
exec su -- root -c 'exec "$@"' sudo "$@"
E
chmod 755 "$R/usr/bin/sudo"
cat > "$R/etc/inittab" <<'E'
::sysinit:/etc/init.d/rcS
::respawn:/bin/sh -c 'exec /usr/sbin/dropbear -F -E -r /etc/dropbear/dropbear_ed25519_host_key 2>>/var/log/dropbear.log'
tty1::respawn:/sbin/getty 38400 tty1 linux
ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
E
cat > "$R/etc/init.d/rcS" <<'E'
#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm; mount -t devpts -o gid=5,mode=620 devpts /dev/pts; mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run; : > /run/utmp
# clean-shutdown.prev: the last shutdown was by the power button. Synced, so that a kill soon after boot cannot bring the old marker back.
[ -e /var/lib/clean-shutdown ] || [ -e /var/lib/clean-shutdown.prev ] && { rm -f /var/lib/clean-shutdown.prev; mv /var/lib/clean-shutdown /var/lib/clean-shutdown.prev 2>/dev/null; sync; }
# network and host key at the same time
ip link set lo up; modprobe virtio_net
( i=0; while [ ! -d /sys/class/net/eth0 ] && [ $i -lt 40 ]; do usleep 50000; i=$((i+1)); done
  ip link set eth0 up && udhcpc -i eth0 -q -n -f -t 5 -T 1 -s /etc/udhcpc.script >/dev/null 2>&1 ) &
modprobe -q virtio-rng
[ -s /etc/dropbear/dropbear_ed25519_host_key ] || dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key >/dev/null 2>&1
# hostname: SMBIOS serial (-smbios type=1,serial=NAME, or cloud-init's "ds=nocloud;h=NAME;i=ID")
read -r s < /sys/class/dmi/id/product_serial; case "$s" in *';h='*) s=${s#*;h=}; s=${s%%;*};; *=*|'Not Specified'|'') s=;; esac
hostname "${s:-$(cat /etc/hostname)}"
# the disk was made larger than the image
if [ -e /dev/.grow ]; then rm -f /dev/.grow; resize2fs /dev/vda1 >/var/log/resize.log 2>&1; fi
# power button
modprobe -q button; modprobe -q evdev; ( acpid -f -l /dev/null >/dev/null 2>&1 & )
# a small part of cloud-init's NoCloud: a second disk (ISO 9660 or FAT) with meta-data and user-data;
# local-hostname is set, user-data that starts with #! runs once per instance-id
seed() {
  modprobe -q isofs; modprobe -q vfat; modprobe -q nls_cp437; modprobe -q nls_ascii; mkdir -p /run/cidata
  for d in /dev/vd[b-z]* /dev/sr0; do [ -b "$d" ] || continue
    for t in iso9660 vfat; do mount -o ro -t $t "$d" /run/cidata 2>/dev/null && break; done || continue
    if [ -f /run/cidata/meta-data ]; then
      h=$(sed -n 's/^local-hostname: *//p' /run/cidata/meta-data); [ -n "$h" ] && hostname "$h"
      id=$(sed -n 's/^instance-id: *//p' /run/cidata/meta-data)
      if [ "$id" != "$(cat /var/lib/cloud/instance-id 2>/dev/null)" ]; then echo "$id" > /var/lib/cloud/instance-id
        read -r l < /run/cidata/user-data; case "$l" in '#!'*) cp /run/cidata/user-data /run/user-data.sh; chmod 755 /run/user-data.sh; /run/user-data.sh >/var/log/user-data.log 2>&1;; esac
      fi
      umount /run/cidata; return
    fi; umount /run/cidata
  done; }
ls /sys/block | grep -qE '^(vd[b-z]|sr0)' && seed
# shared folders: every 9p tag and every virtiofs tag named in share=TAG,TAG (kernel) or "share" is mounted on /mnt/TAG
[ -n "$(grep -lE '0x001a|0x0009' /sys/bus/virtio/devices/*/device 2>/dev/null)" ] && /etc/init.d/shares &
[ -x /etc/rc.local ] && /etc/rc.local
modprobe -q virtio_balloon; modprobe -q virtio_console
wait; exit 0
E
cat > "$R/etc/init.d/shares" <<'E'
#!/bin/sh
modprobe -q virtiofs; modprobe -q 9pnet_virtio; modprobe -q 9p
for t in /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag; do [ -f "$t" ] || continue; n=$(tr -d '\0' < "$t")
  mkdir -p "/mnt/$n"; mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 "$n" "/mnt/$n"; done
# Linux 6.1 does not tell a virtiofs tag in sysfs (6.9 does): try the names share, share0 to share9
[ -n "$(ls -d /sys/bus/virtio/drivers/virtiofs/virtio* 2>/dev/null)" ] && for n in share share0 share1 share2 share3 share4 share5 share6 share7 share8 share9; do
  mkdir -p "/mnt/$n"; mount -t virtiofs "$n" "/mnt/$n" 2>/dev/null || rmdir "/mnt/$n"; done
exit 0
E
cat > "$R/etc/udhcpc.script" <<'E'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/${mask:-24} dev $interface
for r in $router; do ip route add default via $r dev $interface; break; done
: > /etc/resolv.conf; for d in $dns; do echo nameserver $d >> /etc/resolv.conf; done
E
cat > "$R/etc/acpi/PWRF/00000080" <<'E'
#!/bin/sh
# ACPI power button (QMP system_powerdown). Tell the services, give them a moment, then off: 0.3 s instead of init's 2 s.
echo "power button $(cat /proc/uptime)" > /var/lib/clean-shutdown
[ -x /etc/rc.shutdown ] && /etc/rc.shutdown
killall -TERM dropbear getty 2>/dev/null; usleep 100000
sync; mount -o remount,ro / 2>/dev/null; exec poweroff -f
E
chmod 755 "$R"/etc/init.d/* "$R/etc/udhcpc.script" "$R/etc/acpi/PWRF/00000080"
find "$R" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

# ---------------------------------------------------------------- disk: | MBR | 1 MiB: FAT (slot 2, active) | ext4 root (slot 1, last, so it can grow) |
DISK=$WORK/disk.raw; truncate -s "${SIZE_MB}M" "$DISK"; FAT=$WORK/fat.img; truncate -s "${FAT_MB}M" "$FAT"
mkfs.vfat -F 16 -i 7f3c1d7e --invariant -h 2048 "$FAT" >/dev/null
printf 'DEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd.img\n APPEND %s\n' "$CMDLINE" > "$WORK/syslinux.cfg"
export MTOOLS_SKIP_CHECK=1
mcopy -i "$FAT" "$KERNEL" ::vmlinuz; mcopy -i "$FAT" "$WORK/initrd.img" "$WORK/syslinux.cfg" ::
syslinux --install "$FAT"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$DISK" bs=440 count=1 conv=notrunc status=none
dd if="$FAT" of="$DISK" bs=1M seek=1 conv=notrunc,sparse status=none
ROOT_MB=$((SIZE_MB-FAT_MB-1))
EXT=$WORK/ext4.img; truncate -s "${ROOT_MB}M" "$EXT"
mke2fs -q -F -t ext4 -L root -U 7f3c1d7e-0000-4000-8000-000000000001 -b 4096 -I 256 -J size=4 -m 0 -O ^metadata_csum,^64bit \
  -E hash_seed=7f3c1d7e-0000-4000-8000-000000000002,lazy_itable_init=1,lazy_journal_init=1,resize=1T -d "$R" "$EXT"
# mke2fs copies the files' ctime and atime of this build: set them, so that the same packages give the same image
n=$(dumpe2fs -h "$EXT" 2>/dev/null | awk '/^Inode count/{c=$3}/^Free inodes/{f=$3}END{print c-f}')
for i in $(seq 2 "$n"); do for t in ctime atime mtime crtime; do echo "sif <$i> $t @$SOURCE_DATE_EPOCH"; echo "sif <$i> ${t}_extra 0"; done; done > "$WORK/sif"
debugfs -w -f "$WORK/sif" "$EXT" >/dev/null 2>&1
dd if="$EXT" of="$DISK" bs=1M seek=$((FAT_MB+1)) conv=notrunc,sparse status=none
perl -e '($d,$f,$r)=@ARGV; open F,"+<",$d or die; sub e{my($slot,$act,$type,$s,$n)=@_; seek F,446+16*$slot,0; print F pack("C C3 C C3 V V",$act,254,255,255,$type,254,255,255,$s,$n)}
  e(0,0,0x83,($f+1)*2048,$r*2048); e(1,0x80,0x0e,2048,$f*2048); seek F,510,0; print F "\x55\xaa"' "$DISK" "$FAT_MB" "$ROOT_MB"

mkdir -p "$(dirname "$OUT")"
case $COMPRESS in zstd) o="-c -o compression_type=zstd";; zlib) o="-c";; none) o=;; *) die "COMPRESS is $COMPRESS: give zstd, zlib or none";; esac
# shellcheck disable=SC2086
qemu-img convert -q -f raw -O qcow2 $o "$DISK" "$OUT.$$.tmp"; mv "$OUT.$$.tmp" "$OUT" # whole or not at all
[ -z "${KEEP_KERNEL:-}" ] || { cp "$KERNEL" "$OUT.vmlinuz"; cp "$WORK/initrd.img" "$OUT.initrd"; }
echo "$OUT: $(stat -c %s "$OUT") bytes; kernel $KVER $(stat -Lc %s "$KERNEL"), initramfs $(stat -c %s "$WORK/initrd.img"), root files $(du -sk --apparent-size "$R" | cut -f1)k"
