# shellcheck shell=bash
# page.sh: what inside.sh and front.sh share: how they go through a page in machine.sh's machine, running its commands as they
# stand there. Sourced by them, from /shared; PAGE is the page that they go through, by its path in the repository.
export LC_ALL=C.UTF-8 HOME=/root
cd /root || exit 1
say() { printf '    %s\n' "$*"; }
die() { trap - TERM; printf '!!! %s\n' "$*" >&2; explain || true; exit 1; }
trap 'die "it takes too long, and is ended"' TERM
set -o errtrace
trap 'die "line $LINENO of ${BASH_SOURCE[0]}: $BASH_COMMAND"' ERR
# What else may tell why; each script has its own.
explain() { :; }

# What the machine around knows of its hypervisor counts here, too.
# shellcheck disable=SC2034 # for those who source this
ACCEL=$(cat /shared/accel)
# As udev would make it, where the host has it; its group comes with the package.
[ ! -e /shared/kvm ] || mknod -m 660 /dev/kvm c 10 232

# section TITLE [N [LANGUAGE]]: the N-th block of that language (sh) below that heading of the page
section() {
  local text
  text=$(awk -v title="$1" -v wanted="${2:-1}" -v fence="\`\`\`${3:-sh}" '
    inside && /^```$/ { inside = 0; next }
    inside { if (mine && here && block == wanted) print; next }
    /^#+ / { sub(/^#+ /, ""); here = ($0 == title); next }
    here && $0 == fence { block++ }
    /^```/ { inside = 1; mine = ($0 == fence) }' "/shared/pages/$PAGE")
  [ -n "$text" ] || die "$PAGE has no ${3:-commands} ${2:-1} below \"$1\""
  printf '%s\n' "$text"
}
# as_written TITLE [N [FUNCTION…]]: runs these commands in this shell; with functions each line on its own, in turn, by the one
# that is its, which is called with the line
as_written() {
  local title=$1 number=${2:-1} text lines line
  text=$(section "$title" "$number") || exit 1
  say "as written: $title $number"
  shift $(($# < 2 ? $# : 2))
  if [ $# = 0 ]; then run "$text"; return; fi
  mapfile -t lines <<<"$text"
  [ ${#lines[@]} = $# ] || die "\"$title\" $number has ${#lines[@]} lines by now: say how each is to be run"
  for line in "${lines[@]}"; do "$1" "$line"; shift; done
}
# run COMMANDS: in this shell, to their end; what they said is in /tmp/said
run() { eval "$1" >/tmp/said 2>&1 </dev/null || { cat /tmp/said >&2; die "this failed: $1"; }; }
said() { grep -q -- "$1" /tmp/said || { cat /tmp/said >&2; die "not said: $1"; }; }
# wait_until SECONDS COMMAND…
wait_until() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/tmp/waited 2>&1; do
    [ $SECONDS -lt $deadline ] || { cat /tmp/waited >&2; die "it does not come to this: $*"; }
    sleep 0.2
  done
}
