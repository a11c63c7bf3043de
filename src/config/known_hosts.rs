//! The host keys of VMs and of workers' machines, remembered when one is first logged in to. Read and written by `orchard
//! ssh`, `exec` and `cp`; the configuration that `orchard ssh-config` prints has stock OpenSSH use the same file, which is
//! why it has OpenSSH's form.
//!
//! A key belongs to one *start* of one VM ([`alias`]): a VM that starts over does so with a fresh disk from its image, on which
//! the guest makes new keys at its first boot, and that is no change to warn of. One that boots again from its own disk keeps
//! its keys, and so does not get away with others. A new VM of the same name is another one altogether.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::Home;
use super::context::ContextError;
use super::file;
use crate::identity;
use crate::model::{Attempt, VmUid};

/// The file's name in the home folder.
const FILE_NAME: &str = "known_hosts";
/// The lock beside it.
const LOCK_NAME: &str = "known_hosts.lock";
/// Lines kept: a build farm that makes a VM a minute is remembered for a day. The oldest go first.
const MAX_LINES: usize = 2_000;
/// How many are kept when there are more, so that not every further key has the file written anew.
const KEPT_LINES: usize = 1_500;
/// A larger file is not one of ours: each line has some hundred bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// What the file has to say of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the remembered one.
    Known,
    /// Nothing is remembered of that VM.
    New,
    /// Others are remembered, as algorithm and key.
    Changed(Vec<String>),
}

/// What a VM is called in the file: by identity and start, as names are given again.
pub fn alias(uid: VmUid, attempt: Option<Attempt>) -> String {
    match attempt {
        Some(attempt) => format!("orchard-{uid}-{attempt}"),
        None => format!("orchard-{uid}"),
    }
}

/// What the machine of worker `name` is called in the file: by its identity beside its name, which another machine may get. That is
/// the worker's own word, and so only its digest stands there.
pub fn host_alias(name: &str, machine_id: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(machine_id.as_bytes()).into();
    let short = digest.first_chunk::<16>().map(|short| data_encoding::HEXLOWER.encode(short)).unwrap_or_default();
    format!("orchard-worker-{name}-{short}")
}

/// The file of known hosts in a home folder.
#[derive(Clone, Debug)]
pub struct KnownHosts {
    home: Home,
}

impl KnownHosts {
    /// The one in `home`.
    pub fn new(home: Home) -> Self {
        Self { home }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.home.path().join(FILE_NAME)
    }

    /// Compares `key` (algorithm and key, as OpenSSH writes them) with what is remembered of `alias`, and remembers it if that
    /// is nothing. Blocks for at most 5 s.
    ///
    /// # Errors
    /// [`ContextError`] when the file cannot be read; that a new key could not be written is told as an error, too.
    pub fn check(&self, alias: &str, key: &str) -> Result<Verdict, ContextError> {
        let verdict = judge(&self.read()?, alias, key);
        if verdict != Verdict::New {
            return Ok(verdict);
        }
        self.home.prepare()?;
        let _lock = file::lock(&self.home.path().join(LOCK_NAME))?;
        // Another command may have been first, with another key.
        let text = self.read()?;
        let verdict = judge(&text, alias, key);
        if verdict == Verdict::New {
            self.add(&text, &format!("{alias} {key}\n"))?;
        }
        Ok(verdict)
    }

    fn read(&self) -> Result<String, ContextError> {
        let path = self.path();
        match fs::metadata(&path) {
            Ok(about) if about.len() > MAX_FILE_BYTES => {
                let reason = format!("it has {} bytes", about.len());
                Err(ContextError::Syntax { path, reason })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(ContextError::Io { what: "read", path, source }),
            Ok(_) => match fs::read(&path) {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(source) => Err(ContextError::Io { what: "read", path, source }),
            },
        }
    }

    fn add(&self, text: &str, line: &str) -> Result<(), ContextError> {
        let path = self.path();
        let written = match pruned(text, line) {
            Some(all) => identity::write_private(&path, all.as_bytes()),
            // As OpenSSH does: one write at the end, so that neither takes the other's line away.
            None => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)
                .and_then(|mut file| file.write_all(line.as_bytes())),
        };
        written.map_err(|source| ContextError::Io { what: "write", path, source })
    }
}

/// What `text` says of `key`. Lines that are none of ours, such as hashed ones, say nothing.
fn judge(text: &str, alias: &str, key: &str) -> Verdict {
    let mut others = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(hosts), Some(algorithm), Some(data)) = (words.next(), words.next(), words.next()) else { continue };
        if !hosts.split(',').any(|host| host == alias) {
            continue;
        }
        let known = format!("{algorithm} {data}");
        if known == key {
            return Verdict::Known;
        }
        others.push(known);
    }
    if others.is_empty() { Verdict::New } else { Verdict::Changed(others) }
}

/// The whole new text, if adding `line` at the end will not do: because the oldest lines must go, or the last one has no end.
fn pruned(text: &str, line: &str) -> Option<String> {
    let count = text.lines().count();
    if count < MAX_LINES && (text.is_empty() || text.ends_with('\n')) {
        return None;
    }
    let skip = if count < MAX_LINES { 0 } else { count - KEPT_LINES };
    let mut all: String = text.lines().skip(skip).flat_map(|kept| [kept, "\n"]).collect();
    all.push_str(line);
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nza";

    fn known() -> (tempfile::TempDir, KnownHosts) {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownHosts::new(Home::at(dir.path().join("home")));
        (dir, known)
    }

    #[test]
    fn a_key_is_remembered_at_first_use_and_another_is_refused_from_then_on() {
        let (_dir, known) = known();
        assert_eq!(known.check("orchard-1-0", KEY).unwrap(), Verdict::New);
        assert_eq!(known.check("orchard-1-0", KEY).unwrap(), Verdict::Known);
        let other = Verdict::Changed(vec![KEY.to_owned()]);
        assert_eq!(known.check("orchard-1-0", "ssh-ed25519 OTHER").unwrap(), other);
        assert_eq!(known.check("orchard-1-0", "ssh-rsa AAAA").unwrap(), other, "nor one of another kind");
        assert_eq!(known.check("orchard-1-1", "ssh-ed25519 OTHER").unwrap(), Verdict::New, "started over");
        let mode = fs::metadata(known.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode, fs::read_to_string(known.path()).unwrap().lines().count()), (0o600, 2));
    }

    #[test]
    fn a_worker_has_a_name_of_its_own_for_each_machine() {
        let one = host_alias("mini-1", "an id\nwith more");
        assert!(one.starts_with("orchard-worker-mini-1-") && !one.contains(char::is_whitespace), "{one}");
        assert_eq!(one, host_alias("mini-1", "an id\nwith more"));
        assert!(one != host_alias("mini-1", "another") && one != host_alias("mini-2", "an id\nwith more"));
    }

    #[test]
    fn what_openssh_wrote_counts() {
        let text = format!("# a comment\n|1|salt|hash ssh-rsa X\nother,orchard-1-0 {KEY} made by hand\n\n@revoked");
        assert_eq!(judge(&text, "orchard-1-0", KEY), Verdict::Known);
        assert_eq!(judge(&text, "orchard-1-00", KEY), Verdict::New);
        assert_eq!(pruned(&text, "line\n").unwrap(), format!("{text}\nline\n"), "a last line without an end gets one");
        assert_eq!(pruned(&format!("{text}\n"), "line\n"), None);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let (_dir, known) = known();
        known.home.prepare().unwrap();
        let lines: String = (0..MAX_LINES).map(|n| format!("orchard-{n}-0 {KEY}\n")).collect();
        fs::write(known.path(), lines).unwrap();
        assert_eq!(known.check("orchard-new", KEY).unwrap(), Verdict::New);
        let text = known.read().unwrap();
        assert_eq!(text.lines().count(), KEPT_LINES + 1);
        assert_eq!(judge(&text, "orchard-new", KEY), Verdict::Known);
        assert_eq!(judge(&text, &format!("orchard-{}-0", MAX_LINES - 1), KEY), Verdict::Known);
        assert_eq!(judge(&text, "orchard-0-0", KEY), Verdict::New);
    }

    #[test]
    fn commands_at_the_same_time_lose_no_key_and_agree_on_one() {
        let (_dir, known) = known();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let known = &known;
                scope.spawn(move || known.check(&format!("orchard-{number}"), KEY).unwrap());
                scope.spawn(move || known.check("orchard-same", &format!("ssh-ed25519 K{number}")).unwrap());
            }
        });
        let text = known.read().unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("orchard-same ")).count(), 1, "{text}");
        assert_eq!(text.lines().count(), 9);
    }
}
