#!/usr/bin/env bash
# quickstart.sh: from a clean clone to a shell in a running VM, in one command.
# Installs what is missing, builds Orchard and a small guest image, starts controller and worker on this machine,
# boots a VM, runs a command in it, shows its events, and leaves the cluster running until Ctrl-C.
set -euo pipefail
usage() {
  cat <<'T'
usage: deploy/quickstart.sh [--runtime auto|qemu|tart|vetu|synthetic] [--image IMAGE] [--debug] [--once]

  --runtime R    what runs the VM. auto: Tart on macOS, QEMU on Linux, else synthetic, which only pretends to run it
  --image IMAGE  the VM's image (a path or URL for QEMU, a registry name for Tart) instead of the small built-in one
  --debug        build without optimisation, which takes a fraction of the time
  --once         stop everything at the end instead of leaving the cluster running

State, logs and the guest image are kept in $ORCHARD_HOME (default ~/.orchard).
T
}
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RUNTIME=auto IMAGE='' PROFILE=release ONCE='' VM=hello
while [ $# -gt 0 ]; do
  case $1 in
    --runtime | --image) [ $# -gt 1 ] || { usage >&2; exit 2; }; if [ "$1" = --image ]; then IMAGE=$2; else RUNTIME=$2; fi; shift 2 ;;
    --runtime=*) RUNTIME=${1#*=}; shift ;;
    --image=*) IMAGE=${1#*=}; shift ;;
    --debug) PROFILE=debug; shift ;;
    --once) ONCE=1; shift ;;
    -h | --help) usage; exit 0 ;;
    *) warn "unknown argument: $1"; usage >&2; exit 2 ;;
  esac
done
case $RUNTIME in auto | qemu | tart | vetu | synthetic) ;; *) warn "unknown runtime: $RUNTIME"; usage >&2; exit 2 ;; esac

unset ORCHARD_URL ORCHARD_FINGERPRINT ORCHARD_SERVICE_ACCOUNT_NAME ORCHARD_SERVICE_ACCOUNT_TOKEN ORCHARD_BOOTSTRAP_ADMIN_TOKEN # they would lead to another cluster
export ORCHARD_HOME=${ORCHARD_HOME:-$HOME/.orchard}
(umask 077 && mkdir -p "$ORCHARD_HOME") # tokens lie in it
ORCHARD_HOME=$(cd "$ORCHARD_HOME" && pwd)
DATA=$ORCHARD_HOME/dev
LOG=$DATA/quickstart.log
PIDS=$DATA/quickstart.pids # "script dev": who runs here, for the next run
EVENTS=$DATA/quickstart.events
mkdir -p "$DATA"
DEV='' CREATED=''

main() {
  cd "$ROOT"
  take_over
  step "Looking for what is needed"
  ensure_rust
  if [ "$(uname -s)" = Linux ]; then
    # shellcheck disable=SC2086 # a list of words
    ensure_packages "building" $BUILD_PACKAGES || die "There is no C compiler to build with."
  else
    cc --version >/dev/null 2>&1 || die "There is no C compiler. Get Apple's with: xcode-select --install"
  fi
  choose_runtime
  note "runtime: $RUNTIME"

  case $PROFILE in
    release) step "Building Orchard, release (the first time 5 to 20 minutes; with --debug 2 to 5)" ;;
    *) step "Building Orchard, $PROFILE (some minutes the first time)" ;;
  esac
  if [ $PROFILE = release ]; then cargo build --release --locked; else cargo build --locked; fi
  BIN=$(target_dir)/$PROFILE
  PATH="$BIN:$PATH"

  step "Starting controller and worker: orchard dev --runtime $RUNTIME"
  start_dev
  orchard list workers | indent

  step "Creating a VM: orchard create vm $VM --image $IMAGE --cpu 1 --memory 256 --wait"
  drop_leftover
  watch_events
  CREATED=1
  bounded 600 orchard create vm "$VM" --image "$IMAGE" --cpu 1 --memory 256 --wait 2>&1 | indent || die_with_log "The VM did not start."

  step "Running a command in it: orchard ssh vm $VM uname -a"
  if bounded 120 orchard ssh vm "$VM" uname -a </dev/null >"$DATA/quickstart.out" 2>&1; then indent <"$DATA/quickstart.out"; else
    indent <"$DATA/quickstart.out"
    [ "$RUNTIME" = synthetic ] || die_with_log "The command in the VM failed."
    note "(the synthetic runtime has no real guest)"
  fi

  step "The VM's events, as they came over the bus: orchard events --follow"
  show_events

  if [ -n "$ONCE" ]; then step "All of it works."; return 0; fi
  step "The cluster is running; Ctrl-C stops it. In another terminal:"
  local home=''
  [ "$ORCHARD_HOME" = "$HOME/.orchard" ] || home="export ORCHARD_HOME=$ORCHARD_HOME; "
  note "${home}export PATH=\"$BIN:\$PATH\""
  note "orchard ssh vm $VM                          # a shell in the VM (try also: … 'sh -s' < script.sh)"
  note "orchard create vm two --image $IMAGE --wait && orchard list vms"
  note "orchard port-forward vm $VM 2222:22 &       # any TCP port of the VM on this machine"
  trap 'exit 0' INT # from here on it is the normal end
  wait "$DEV" || true
  die_with_log "orchard dev ended by itself."
}

indent() { sed 's/^/    /'; }
die_with_log() {
  warn "$1 The last lines of $LOG:"
  tail -n 20 "$LOG" 2>/dev/null | sed 's/^/    | /' >&2
  exit 1
}

# ---------------------------------------------------------------- the runtime and the image
choose_runtime() {
  local asked=$RUNTIME system
  system=$(uname -sm)
  [ "$asked" != auto ] || case $system in Darwin*) RUNTIME=tart ;; *) RUNTIME=qemu ;; esac
  case $RUNTIME in
    qemu) have_qemu "$system" || fall_back "$asked" "QEMU" ;;
    tart) have_tart || fall_back "$asked" "Tart" ;;
    vetu) command -v vetu >/dev/null || die "vetu is not installed: see https://github.com/cirruslabs/vetu" ;;
  esac
  case $RUNTIME in
    tart) IMAGE=${IMAGE:-ghcr.io/cirruslabs/ubuntu:latest} ;; # a third of the size of the smallest macOS image
    vetu) IMAGE=${IMAGE:-ghcr.io/cirruslabs/ubuntu:latest} ;;
    synthetic) IMAGE=${IMAGE:-synthetic} ;;
  esac
}
have_qemu() {
  case $1 in Linux*) ;; *) warn "This script sets QEMU up on Linux only."; return 1 ;; esac
  # shellcheck disable=SC2086 # lists of words
  ensure_packages "running VMs" $QEMU_PACKAGES || return 1
  [ -z "$IMAGE" ] || return 0
  if [ "$1" != "Linux x86_64" ]; then
    warn "The small guest image is built on x86_64 only: give a bootable one with --image."; return 1
  fi
  # shellcheck disable=SC2086
  ensure_packages "building the guest image" $GUEST_PACKAGES || return 1
  # shellcheck disable=SC2086
  ensure_packages "VMs that boot by UEFI" $UEFI_PACKAGES || note "orchard create vm --firmware uefi will not work here"
  step "Building the guest image"
  guest_image "$DATA/guest" || return 1
  IMAGE=$DATA/guest/tiny.qcow2
}
have_tart() {
  command -v tart >/dev/null && return 0
  if [ "$(uname -s)" != Darwin ]; then warn "Tart runs on macOS only."; return 1; fi
  command -v brew >/dev/null || { warn "Tart is not installed, and neither is Homebrew (https://brew.sh) to install it with."; return 1; }
  step "Installing for running VMs: tart"
  brew install cirruslabs/cli/tart
}
# fall_back ASKED NAME: the synthetic runtime instead, unless the other one was asked for by name
fall_back() {
  [ "$1" = auto ] || die "$2 is not there and could not be installed (see above). Without it: deploy/quickstart.sh --runtime synthetic"
  warn "$2 is not there and could not be installed (see above)."
  warn "Going on with the SYNTHETIC runtime: everything is real except the VM, which is only pretended."
  RUNTIME=synthetic IMAGE=''
}

# ---------------------------------------------------------------- the cluster
# take_over: one quickstart per folder; what one that was killed left running is stopped
take_over() {
  local script dev
  if read -r script dev 2>/dev/null <"$PIDS"; then
    if runs "$script" quickstart; then die "deploy/quickstart.sh already runs here (process $script). Stop it with Ctrl-C there, or use another folder: ORCHARD_HOME=/some/where deploy/quickstart.sh"; fi
    if runs "${dev:-}" orchard; then
      note "stopping what an earlier run left behind (process $dev)"
      stop_process "$dev"
    fi
  fi
  echo "$$ " >"$PIDS"
}
# runs PID WORD: a process of that id is there and is the one meant
runs() {
  local arguments
  case ${1:-none} in *[!0-9]* | "$$") return 1 ;; esac
  if [ -r "/proc/$1/cmdline" ]; then arguments=$(tr '\0' ' ' <"/proc/$1/cmdline"); else arguments=$(ps -p "$1" -o args= 2>/dev/null); fi
  case $arguments in *"$2"*) ;; *) return 1 ;; esac
}

start_dev() {
  local addresses=''
  while true; do
    set -m # a process group of its own: Ctrl-C comes to this script, which deletes its VM before it stops the cluster
    # shellcheck disable=SC2086 # none or two options
    "$BIN/orchard" dev --data-dir "$DATA" --runtime "$RUNTIME" $addresses >"$LOG" 2>&1 </dev/null &
    DEV=$!
    set +m
    echo "$$ $DEV" >"$PIDS"
    if wait_ready; then return 0; fi
    if [ -z "$addresses" ] && ! alive && grep -qi 'address already in use' "$LOG"; then
      note "the usual ports (4222/tcp, 6120/udp) are in use: letting the system choose free ones"
      addresses='--listen 127.0.0.1:0 --bus-listen 127.0.0.1:0'
      continue
    fi
    die_with_log "The cluster did not start."
  done
}
alive() { [ -n "$DEV" ] && kill -0 "$DEV" 2>/dev/null; }
# wait_ready: until the controller answers and knows a worker
wait_ready() {
  local deadline=$((SECONDS + 60))
  while alive; do
    case $(bounded 10 orchard list workers --output json 2>"$DATA/quickstart.err") in *'"name"'*) return 0 ;; esac
    if [ $SECONDS -ge $deadline ]; then
      warn "no worker after 60 s; the last answer: $(cat "$DATA/quickstart.err")"
      return 1
    fi
    sleep 0.2
  done
  return 1
}
drop_leftover() {
  orchard get vm "$VM" >/dev/null 2>&1 || return 0
  note "a VM \"$VM\" is left over from an earlier run: deleting it first"
  delete_vm || die_with_log "The leftover VM could not be deleted."
}
# delete_vm: the name is free at once; returns when the worker has told that nothing is left of the VM
delete_vm() {
  local deadline=$((SECONDS + 30)) last
  last=$(last_event)
  bounded 30 orchard delete vm "$VM" >/dev/null || return 1
  until bounded 10 orchard events --vm "$VM" --after "$last" 2>/dev/null | grep '  deleted' >/dev/null; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.2
  done
}

# ---------------------------------------------------------------- events
# last_event: the number of the newest event, 0 when there is none
last_event() {
  local last
  last=$(orchard events --output json 2>/dev/null | tail -n 1 | sed -n 's/.*"number": *\([0-9]*\).*/\1/p') || true
  echo "${last:-0}"
}
# watch_events: a subscriber that runs beside the demo and writes down what it is sent
watch_events() {
  local last # named, so that it does not matter how fast the subscriber starts
  last=$(last_event)
  : >"$EVENTS"
  set -m
  orchard events --follow --vm "$VM" --after "$last" >"$EVENTS" 2>&1 </dev/null &
  WATCHER=$!
  set +m
}
show_events() {
  local deadline=$((SECONDS + 5))
  # the last one, "ready", may still be on its way when create --wait returns
  while ! grep -q '  ready' "$EVENTS" && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
  kill "$WATCHER" 2>/dev/null || true
  wait "$WATCHER" 2>/dev/null || true
  WATCHER=''
  [ -s "$EVENTS" ] || die_with_log "No event arrived."
  indent <"$EVENTS"
}

# ---------------------------------------------------------------- the end
stop_process() {
  local deadline=$((SECONDS + 20))
  kill -TERM "$1" 2>/dev/null || return 0
  while kill -0 "$1" 2>/dev/null; do
    if [ $SECONDS -ge $deadline ]; then
      warn "process $1 did not stop in 20 s: ending it hard"
      kill -KILL "$1" 2>/dev/null || true
      break
    fi
    sleep 0.1
  done
}
WATCHER=''
finish() {
  local status=$?
  trap '' INT TERM HUP PIPE
  trap - EXIT
  set +e
  [ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null
  if alive; then
    echo
    if [ -n "$CREATED" ] && bounded 10 orchard get vm "$VM" >/dev/null 2>&1; then
      step "Deleting the VM \"$VM\" (VMs outlive the worker; others that you made run on, and the next start finds them)"
      delete_vm || warn "\"$VM\" could not be deleted; the next start will find it."
    fi
    step "Stopping the cluster"
    stop_process "$DEV"
    note "stopped; the state stays in $DATA"
  fi
  wait 2>/dev/null
  case $(cat "$PIDS" 2>/dev/null) in "$$ "*) rm -f "$PIDS" ;; esac
  exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trap 'exit 141' PIPE # the reader of our output is gone

main
