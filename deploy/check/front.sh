#!/usr/bin/env bash
# front.sh: what machine.sh does in its machine, where this is /shared/front.sh: goes through README.md, running its commands as
# they stand there, and looks between them at what they should have brought about. With them goes deploy/examples/README.md.
#
# The first commands of README.md and those below "Development" are .ci/run's. Each machine of the page is this one with another
# home: the controller's is /machines/ctl, a worker's /machines/NAME, and people work in /root.
set -euo pipefail
# shellcheck source=deploy/check/page.sh
. /shared/page.sh
PAGE=README.md
explain() { tail -n 20 /tmp/*.log >&2; }

at() { export HOME=$1; mkdir -p "$HOME"; cd "$HOME"; }
controller_s_machine() { at /machines/ctl; }
where_people_work() { at /root; }
# lasting NAME LINE: runs in the background, in a session of its own; what it says goes to /tmp/NAME.log
lasting() { setsid bash -c "$2" >"/tmp/$1.log" 2>&1 </dev/null & }
# ended COMMAND: ends what lasts in order
ended() {
  pkill --full "^$1" || die "this runs no more: $1"
  wait_until 30 not pgrep --full "^$1"
}
not() { ! "$@"; }
# answered LINE PROMPT ANSWER…: runs it in a terminal where somebody types the answers, each once its prompt is there
answered() {
  local line=$1; shift
  local answers # read by what is run
  # shellcheck disable=SC2034
  answers=$(python3 -c 'import json, sys; a = sys.argv[1:]; print(json.dumps([(p, t + "\r" if t else "") for p, t in zip(a[::2], a[1::2])]))' "$@")
  run "python3 /shared/dialogue.py \"\$answers\" bash -c \"\$line\""
}
controller_runs() {
  lasting controller "$1"
  wait_until 60 grep -q 'orchard controller is ready' /tmp/controller.log
}
sees() { orchard list workers | grep -q -- "$1"; }
# hello URL [USER PASSWORD]: a stock NATS client's
hello() { PYTHONPATH=/shared timeout 20 python3 /shared/hello.py "$@"; }
in_vm() { timeout 60 orchard exec vm build-1 -- "$@"; }

install -m 755 /shared/orchard /usr/local/bin/orchard
install -D -m 644 /shared/tiny.qcow2 /srv/images/tiny.qcow2
[ -z "$ACCEL" ] || export ORCHARD_QEMU_ACCEL=$ACCEL
cat >/usr/local/bin/ssh <<'S'
#!/bin/bash
# To the machine of a worker; to VMs it is the stock one.
[ "$1" = mini-1 ] || exec /usr/bin/ssh "$@"
mkdir -p "/machines/$1"
exec unshare --uts env HOME="/machines/$1" bash -c "hostname $1; cd; ${*:2}"
S
chmod 755 /usr/local/bin/ssh

# ---------------------------------------------------------------- several machines
# On a terminal it shows the first account's token.
on_a_terminal() {
  setsid script --quiet --flush --command "$1" /tmp/controller.log </dev/null >/dev/null 2>&1 &
  wait_until 60 grep -q 'orchard controller is ready' /tmp/controller.log
}
worker_joins() {
  lasting worker "$1"
  wait_until 60 sees '^mini-1 .* online '
}
controller_s_machine
as_written 'Controller and workers on several machines' 1 on_a_terminal worker_joins
print=$(sed -n 's/^ *certificate *\([0-9a-f]\{64\}\).*/\1/p' /tmp/controller.log)
token=$(sed -n 's/.*with the token \([^ ]*\) (shown this once).*/\1/p' /tmp/controller.log)
[ -n "$print" ] || die "the controller shows no certificate"
[ -n "$token" ] || die "the controller shows no token on its terminal"

somebody_answers() {
  answered "$1" "$print" '' '(yes/no)' yes 'Service account: ' bootstrap-admin 'Token of bootstrap-admin' "$token"
}
where_people_work
as_written 'Controller and workers on several machines' 2 somebody_answers run run
[ "$(stat -c %a ci.token)" = 600 ] || die "others may read the account's token"
run 'orchard create vm build-1 --image /srv/images/tiny.qcow2 --cpu 1 --memory 128 --wait'

# ---------------------------------------------------------------- programs that follow
follows() {
  lasting follow "$1"
  wait_until 30 grep -q '"build-1"' /tmp/follow.log
}
following() {
  PAGE=deploy/examples/README.md
  export PYTHONPATH=/shared # what pip would install
  mkdir -p program && cd program
  cp /shared/follow.py /machines/ctl/.orchard/controller/controller.crt .
  as_written 'Programs that follow a cluster' 1 run run run follows
  [ -s last ] || die "follow.py notes no number"
  ended 'python3 follow.py'
}
(following)

# ---------------------------------------------------------------- the jump host
controller_s_machine
ended 'orchard controller run'
controller_runs 'orchard controller run --listen-ssh 0.0.0.0:6122'
by_token() {
  jump=$1
  # shellcheck disable=SC2016 # for the guest's shell
  answered "$jump" 'continue connecting' yes 'password:' "$(cat ci.token)" 'continue connecting' yes 'password:' admin \
    '$ ' 'echo heard-$(uname -n); exit'
  said '^heard-build-1'
}
take_the_key() {
  ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
  run "$1"
  # Now the jump host asks nothing any more, and the guest still does.
  # shellcheck disable=SC2016
  answered "$jump" 'password:' admin '$ ' 'echo again-$(uname -n); exit'
  said '^again-build-1'
}
where_people_work
wait_until 60 in_vm true
# shellcheck disable=SC2016 # backticks of the page
as_written 'With plain `ssh`: the jump host' 1 by_token take_the_key

# ---------------------------------------------------------------- stock programs
# The guest has no rsync: this machine's goes there, with the libraries that it needs.
mkdir rsync src
# shellcheck disable=SC2046 # a list of words
cp -L "$(command -v rsync)" $(ldd "$(command -v rsync)" | grep -oE '/[^ ]+') rsync
orchard cp -r rsync build-1:rsync
in_vm sh -c "printf '#!/bin/sh\ncd\nexec rsync/%s --library-path rsync rsync/rsync \"\$@\"\n' $(cd rsync && echo ld-linux*) >wrapper &&
  chmod 755 wrapper && sudo cp wrapper /usr/bin/rsync"
echo Include orchard >~/.ssh/config
echo brought >src/file
by_password() { answered "$1" 'password:' admin; }
as_written 'Ways into a VM' 1 run by_password
[ "$(in_vm cat src/file)" = brought ] || die "rsync brought nothing"

# ---------------------------------------------------------------- backups
restoring() {
  # The page's was made on another day.
  [ -e /backup/orchard-2026-11-22 ] || mv /backup/orchard-* /backup/orchard-2026-11-22
  ended 'orchard controller run'
  mv .orchard/controller lost
  run "$1"
  controller_runs 'orchard controller run'
}
controller_s_machine
install -d -m 700 /backup
as_written 'Backups' 1 run restoring
where_people_work
wait_until 60 in_vm true
sees '^mini-1 ' || die "the restored controller does not know its worker"
run 'orchard delete vm build-1'
ended 'orchard worker run'
ended 'orchard controller run'

# ---------------------------------------------------------------- a NATS server of one's own
# A public CA, as far as this machine knows.
at /machines/nats
{
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=check -keyout ca.key -out ca.pem
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=nats.example.com -keyout key.pem -out request.pem
  openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem \
    -extfile <(echo 'subjectAltName=DNS:nats.example.com')
  cp ca.pem /usr/local/share/ca-certificates/check.crt
  update-ca-certificates --hooksdir ''
} >/tmp/openssl.log 2>&1
{ echo 'port: 4222, tls { cert_file: "cert.pem", key_file: "key.pem" }'; section 'Backups' 1 text; } |
  sed 's/"…"/"its-own"/; s/ITS OWN/only-here/' >nats.conf
lasting nats '/shared/nats-server --config nats.conf'
wait_until 20 hello tls://nats.example.com:4222 controller its-own

token_for_the_server() {
  install -m 600 <(echo its-own) bus.password
  controller_runs "$1"
  # Only now there is a token; the server reads its users again.
  sed -i "s/TOKEN/$(cat .orchard/controller/token)/" /machines/nats/nats.conf
  pkill --signal HUP --full '^/shared/nats-server'
  wait_until 20 orchard list workers
}
on_w1() {
  install -d -m 700 /machines/w1
  install -m 600 <(echo only-here) /machines/w1/worker.password
  lasting worker "exec unshare --uts env HOME=/machines/w1 bash -c 'hostname w1; cd; $1'"
  wait_until 60 sees '^w1 .* online '
}
at /machines/other
as_written 'Backups' 2 token_for_the_server on_w1
# Requests, their answers and events get through with the rights of the page.
lasting events 'orchard events --follow --after 0'
wait_until 20 grep -q w1 /tmp/events.log
run 'orchard pause worker w1'
wait_until 20 grep -q paused /tmp/events.log
ended 'orchard events'
ended 'orchard worker run'
ended 'orchard controller run'
ended '/shared/nats-server'

# ---------------------------------------------------------------- the broker alone
open_to_all() {
  lasting broker "$1"
  wait_until 20 hello nats://127.0.0.1:4222
  ended 'orchard broker run'
}
for_one_user() {
  lasting broker "$1"
  wait_until 20 hello nats://127.0.0.1:4222 ann s3cret
  not hello nats://127.0.0.1:4222 >/dev/null 2>&1 || die "the broker lets in whoever has no password"
  ended 'orchard broker run'
}
by_file_and_tls() {
  section 'The broker alone' 1 json >users.json
  lasting broker "$1"
  wait_until 20 hello tls://nats.example.com:4222 ann s3cret
  ended 'orchard broker run'
}
on_any_port() {
  lasting broker "$1"
  wait_until 20 test -e ports.json
  wait_until 20 hello "nats://$(sed 's/.*"\(127[^"]*\)".*/\1/' ports.json)"
  ended 'orchard broker run'
  [ ! -e ports.json ] || die "the ports file outlives the broker"
}
at /machines/nats
as_written 'The broker alone' 1 open_to_all for_one_user by_file_and_tls on_any_port

# ---------------------------------------------------------------- your own programs
at /machines/programmer
section 'Your own programs' 1 python >program.py
lasting dev 'orchard dev --runtime synthetic'
wait_until 60 sees '^dev-1 .* online '
lasting program 'PYTHONPATH=/shared exec python3 -u program.py'
wait_until 20 grep -qx '\[\]' /tmp/program.log
run 'orchard create vm seen --image any'
wait_until 20 grep -q '^orchard.v1.events-json.vm.seen.created ' /tmp/program.log
ended 'orchard dev'
say "all commands of README.md but .ci/run's do what they should"
