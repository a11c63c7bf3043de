//! What the guest runs for a copy: POSIX shell and `tar`, with nothing in it that a path could end or expand. Pure.

use std::collections::BTreeMap;

use crate::ssh::quote::{ScriptTextError, command_line};

/// Where a guest puts what it is sent.
pub(super) struct Receive<'a> {
    /// The path that was asked for.
    pub(super) to: &'a str,
    /// The name it gets when that is a folder.
    pub(super) name: &'a str,
    /// The size of a single file; none = a folder.
    pub(super) size: Option<u64>,
    /// Replace a folder.
    pub(super) force: bool,
    /// Makes the name of the folder that it is unpacked in one of its own.
    pub(super) part: &'a str,
}

/// `$1` path, `$2` name, `$3` size or nothing, `$4` force, `$5` part. The archive holds `data`, and at last `end`: an archive
/// that was cut short is taken for whole by some. All names are put behind a folder, so that none
/// is an option. Not every `tar` overrides the umask, and nobody else comes into the folder that it unpacks in.
const RECEIVE: &str = r#"
set -eu
umask 077
fail() { printf '%s\n' "$1" >&2; exit 1; }
to=$1
case $to in -*) to=./$to ;; esac
if [ -d "$to" ]; then target=${to%/}/$2; else
  case $to in */) fail "there is no folder $to" ;; esac
  target=$to
fi
case $target in */*) parent=${target%/*}/ ;; *) parent=./ ;; esac
if [ -d "$target" ] && [ ! -h "$target" ]; then
  [ -z "$3" ] || fail "$target is a folder, and no file can take its place"
  [ "$4" = 1 ] || fail "the folder $target is there already; replace it with --force, or choose another name"
elif [ -z "$3" ] && { [ -e "$target" ] || [ -h "$target" ]; }; then
  fail "$target is there already and is no folder"
fi
part=$parent.orchard-$5
why=$(mkdir "$part" 2>&1) || fail "cannot write into ${parent%/}/: ${why##*: }"
umask 0
trap 'chmod -R u+rwx "$part" 2>/dev/null; rm -rf "$part"' EXIT
trap 'exit 1' HUP INT TERM
tar -x -p -o -f - -C "$part"
[ -f "$part/end" ] || fail "what was sent was cut short"
if [ -n "$3" ]; then
  got=$(wc -c <"$part/data")
  [ $got -eq "$3" ] || fail "$got bytes arrived of $3"
fi
if [ -d "$target" ] && [ ! -h "$target" ]; then mv "$target" "$part/old"; fi
mv -f "$part/data" "$target"
"#;

/// `$1` path, `$2` whether folders are copied. The archive is of `.` for a folder, and of one file otherwise.
const SEND: &str = r#"
set -eu
unset CDPATH
COPYFILE_DISABLE=1
export COPYFILE_DISABLE
fail() { printf '%s\n' "$1" >&2; exit 1; }
from=$1
case $from in -*) from=./$from ;; esac
if [ -d "$from" ]; then
  [ "$2" = 1 ] || fail "$from is a folder; copy it with -r"
  cd "$from" >/dev/null
  exec tar -c -f - .
fi
[ -e "$from" ] || fail "there is no file $from"
[ -f "$from" ] || fail "$from is neither a file nor a folder"
case $from in */*) parent=${from%/*}/; base=${from##*/} ;; *) parent=./; base=$from ;; esac
cd "$parent" >/dev/null
exec tar -c -h -f - "./$base"
"#;

/// The command line that takes an archive from standard input.
pub(super) fn receive(receive: &Receive<'_>) -> Result<String, ScriptTextError> {
    let size = receive.size.map(|size| size.to_string()).unwrap_or_default();
    let force = if receive.force { "1" } else { "0" };
    script(RECEIVE, &[receive.to, receive.name, &size, force, receive.part])
}

/// The command line that writes an archive to standard output.
pub(super) fn send(from: &str, recursive: bool) -> Result<String, ScriptTextError> {
    script(SEND, &[from, if recursive { "1" } else { "0" }])
}

fn script(text: &str, arguments: &[&str]) -> Result<String, ScriptTextError> {
    let words: Vec<String> = ["sh", "-c", text, "sh"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
    command_line(&words, &BTreeMap::new(), None)
}
