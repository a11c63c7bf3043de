#!/usr/bin/env bash
# run.sh: installs what the tests need and runs them all. Arguments go to cargo test: tests/run.sh broker::
#
# The tests boot real VMs from an image built here and talk to a real nats-server in Docker. What cannot be had on this
# machine is said loudly before the tests start, with the tests that will fail; no test is skipped for it.
#
# What the tests are told by environment variables (set one yourself and this script leaves it alone):
#   ORCHARD_TEST_IMAGE       path of a guest image that boots by BIOS and UEFI, user admin/admin
#   ORCHARD_TEST_9P_IMAGE    the same with a kernel that has 9p, for host directories
#   ORCHARD_TEST_NATS_IMAGE  name:tag of a local nats-server image; without it the official one is pulled
#   ORCHARD_TEST_PYTHON      a Python that has nats.py
#   ORCHARD_TEST_NODE_MODULES  the folder node_modules in which nats.js is
#   ORCHARD_TEST_CLIENTS     a folder of programs that has vncdo, ansible and a Python with pyte
#   ORCHARD_TEST_ASYNCAPI    the JSON Schema of AsyncAPI 3.0, a file
#   ORCHARD_SIM_SEEDS        how many seeds the simulation tries
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/lib.sh"
# shellcheck source=deploy/docker.sh
. "$ROOT/deploy/docker.sh"

# OpenSSH, rsync and sshpass are the peers that our own SSH code is held against; iproute2 makes the network namespaces of
# workers and clients that can only dial out or have a bad link; python3 fetches nats-server; python3 and nodejs run the stock NATS clients;
# groff reads the manual pages, zsh and fish complete commands.
TEST_PACKAGES="openssh-client=ssh sshpass=sshpass rsync=rsync iproute2=ip procps=ps python3=python3 python3-pip=python3-pip
  python3-venv=python3-venv nodejs=node npm=npm groff-base=groff zsh=zsh fish=fish"
SSHD_PACKAGE="openssh-server=/usr/sbin/sshd"
# What people reach VMs with: a VNC client, Ansible (the last whose controller runs on Python 3.11), and the emulation of a
# terminal in which a person works.
CLIENTS="vncdotool==1.4.2 cryptography==50.0.2 ansible-core==2.19.14 pyte==0.8.2"
NATS_JS="@nats-io/transport-node@3.3.0" # the last that runs on Node.js 20
ASYNCAPI="@asyncapi/specs@6.11.1"

main() {
  cd "$ROOT"
  step "Looking for what the tests need"
  ensure_rust
  local linux=''; [ "$(uname -s)" != Linux ] || linux=1
  # shellcheck disable=SC2086 # lists of words
  if [ -n "$linux" ]; then
    ensure_packages "building" $BUILD_PACKAGES || die "There is no C compiler to build with."
    ensure_packages "the tests" $TEST_PACKAGES || warn "WILL FAIL: the tests that use the tools named above"
    ensure_sshd || warn "WILL FAIL: the tests that use an OpenSSH server"
    [ -c /dev/net/tun ] || warn "WILL FAIL: the tests of bad networks (netem::), which need /dev/net/tun"
    [ "$(id -u)" = 0 ] || warn "WILL FAIL: the tests that make network namespaces and bridges, which needs root"
  fi
  TOOLS=$(target_dir)/tools
  mkdir -p "$TOOLS"
  export PATH="$TOOLS:$PATH"
  provide_guest || warn "WILL FAIL: the tests that boot real VMs"
  provide_nats || warn "WILL FAIL: the tests that use a real nats-server"
  provide_nats_py || warn "LEFT OUT (WILL FAIL where CI is set): the tests with nats.py"
  provide_clients || warn "LEFT OUT (WILL FAIL where CI is set): the tests with vncdotool, Ansible and a terminal"
  provide_nats_js || warn "LEFT OUT (WILL FAIL where CI is set): the tests with nats.js"

  provide_asyncapi || warn "LEFT OUT (WILL FAIL where CI is set): the test of schemas/asyncapi.json against AsyncAPI's own schema"

  # How many runs of the simulation (src/simulation); a plain `cargo test` makes a tenth of them.
  export ORCHARD_SIM_SEEDS="${ORCHARD_SIM_SEEDS:-2000}"
  step "cargo test --locked $*"
  cargo test --locked "$@"
}

# ensure_sshd: the tests start a server of their own on a free port; the one that the package brings stays off
ensure_sshd() {
  present "${SSHD_PACKAGE#*=}" && return 0
  local systemd=''
  [ ! -d /run/systemd/system ] || systemd=1
  [ -z "$systemd" ] || as_root systemctl mask --quiet ssh.service ssh.socket || true
  local status=0
  ensure_packages "the tests" "$SSHD_PACKAGE" || status=1
  [ -z "$systemd" ] || { as_root systemctl unmask --quiet ssh.service ssh.socket; as_root systemctl disable --quiet ssh.service ssh.socket; } 2>/dev/null || true
  return $status
}

provide_guest() {
  local given=0
  for name in ORCHARD_TEST_IMAGE ORCHARD_TEST_9P_IMAGE; do
    [ -z "${!name:-}" ] || { note "guest image: ${!name} ($name)"; given=$((given + 1)); }
  done
  [ $given != 2 ] || return 0
  [ "$(uname -sm)" = "Linux x86_64" ] || { warn "The guest images are built on x86_64 Linux only."; return 1; }
  # shellcheck disable=SC2086 # lists of words
  ensure_packages "running and building the test VMs" $QEMU_PACKAGES $GUEST_PACKAGES || return 1
  # shellcheck disable=SC2086
  ensure_packages "test VMs that boot by UEFI" $UEFI_PACKAGES || warn "WILL FAIL: the tests that boot a VM by UEFI"
  local folder; folder=$(target_dir)/guest
  if [ -z "${ORCHARD_TEST_IMAGE:-}" ]; then
    guest_image "$folder" || return 1
    export ORCHARD_TEST_IMAGE=$folder/tiny.qcow2
  fi
  if [ -z "${ORCHARD_TEST_9P_IMAGE:-}" ]; then
    guest_image "$folder" tiny-9p full || return 1
    export ORCHARD_TEST_9P_IMAGE=$folder/tiny-9p.qcow2
  fi
}

# ---------------------------------------------------------------- nats-server, as a program and as a Docker image
provide_nats() {
  local docker=0
  ensure_docker || docker=1
  if [ "$(uname -s)" = Linux ]; then fetch_nats || note "nats-server could not be fetched; Docker pulls the official image when a test asks for it"; fi
  [ $docker = 0 ] || return 1
  if [ -n "${ORCHARD_TEST_NATS_IMAGE:-}" ]; then note "nats-server image: $ORCHARD_TEST_NATS_IMAGE (ORCHARD_TEST_NATS_IMAGE)"; return 0; fi
  [ -x "$TOOLS/nats-server" ] || return 0
  local tag
  tag=$(nats_image) || { note "the local nats-server image could not be made; Docker pulls the official one"; return 0; }
  export ORCHARD_TEST_NATS_IMAGE=$tag
  note "nats-server image: $tag"
}
# ---------------------------------------------------------------- stock NATS clients
provide_nats_py() {
  if [ -n "${ORCHARD_TEST_PYTHON:-}" ]; then note "nats.py: $ORCHARD_TEST_PYTHON (ORCHARD_TEST_PYTHON)"; return 0; fi
  fetch_nats_py || return 1
  export ORCHARD_TEST_PYTHON=$TOOLS/nats-py/bin/python
  note "nats.py: $NATS_PY"
}
# provide_nats_js: node_modules with NATS_JS in it, made anew when that changes
provide_nats_js() {
  if [ -n "${ORCHARD_TEST_NODE_MODULES:-}" ]; then note "nats.js: $ORCHARD_TEST_NODE_MODULES (ORCHARD_TEST_NODE_MODULES)"; return 0; fi
  npm_package nats-js "$NATS_JS" || return 1
  export ORCHARD_TEST_NODE_MODULES=$TOOLS/nats-js/node_modules
  note "nats.js: $NATS_JS"
}
# provide_asyncapi: the schema out of ASYNCAPI, which is nothing but schemas
provide_asyncapi() {
  if [ -n "${ORCHARD_TEST_ASYNCAPI:-}" ]; then note "AsyncAPI's schema: $ORCHARD_TEST_ASYNCAPI (ORCHARD_TEST_ASYNCAPI)"; return 0; fi
  npm_package asyncapi "$ASYNCAPI" || return 1
  export ORCHARD_TEST_ASYNCAPI=$TOOLS/asyncapi/node_modules/@asyncapi/specs/schemas/3.0.0.json
  note "AsyncAPI's schema: $ASYNCAPI"
}
# npm_package NAME PACKAGE: TOOLS/NAME/node_modules with PACKAGE in it, made anew when that changes
npm_package() {
  local d=$TOOLS/$1
  [ "$(cat "$d/wanted" 2>/dev/null)" != "$2" ] || return 0
  rm -rf "$d"; mkdir -p "$d"
  # a package of its own, so that npm looks in no folder above
  echo '{ "private": true }' >"$d/package.json"
  (cd "$d" && logged "$d.log" npm install --no-audit --no-fund --ignore-scripts "$2") || return 1
  echo "$2" >"$d/wanted"
}

# ---------------------------------------------------------------- what people reach VMs with
provide_clients() {
  if [ -n "${ORCHARD_TEST_CLIENTS:-}" ]; then note "VNC client, Ansible, terminal: $ORCHARD_TEST_CLIENTS (ORCHARD_TEST_CLIENTS)"; return 0; fi
  from_pypi clients "$CLIENTS" || return 1
  export ORCHARD_TEST_CLIENTS=$TOOLS/clients/bin
  note "VNC client, Ansible, terminal: $CLIENTS"
}

main "$@"
