//! A second process of the worker, which outlives it and the terminal it was started in: the [`guard`](super::guard) and the
//! keeper of [`sessions`](super::sessions).

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

/// How such a process is started: this program, with what makes it one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompanionCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// The size at which such a process empties its log.
const MAX_LOG: u64 = 1 << 20;

impl CompanionCommand {
    /// Starts it, detached, with what it says at the end of `log`: it needs nothing of the worker's, and gets none of its
    /// secrets. It gives itself a session of its own.
    ///
    /// # Errors
    /// What was tried, and what the system said.
    pub(super) fn start(&self, log: &Path) -> Result<Child, String> {
        self.spawn(log).map_err(|error| {
            format!("cannot start {} with its log in {}: {error}", self.program.display(), log.display())
        })
    }

    fn spawn(&self, log: &Path) -> std::io::Result<Child> {
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(options.append(true).create(true), 0o600);
        let log = options.open(log)?;
        let mut companion = Command::new(&self.program);
        companion.args(&self.arguments).current_dir("/");
        companion.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // It would be "exe" otherwise, where that is how the program is found.
        #[cfg(unix)]
        companion.arg0("orchard");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("ORCHARD_") && name != "ORCHARD_HOME" {
                companion.env_remove(&*name);
            }
        }
        companion.spawn()
    }
}

/// Empties a log that has grown too large. It is written to at its end, so that is enough.
pub(super) fn bound_log(path: &Path) {
    if std::fs::metadata(path).is_ok_and(|about| about.len() > MAX_LOG)
        && let Ok(log) = File::options().write(true).open(path)
    {
        let _ = log.set_len(0);
    }
}
