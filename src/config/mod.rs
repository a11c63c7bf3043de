//! What is kept on the user's machine: the home folder here, the saved contexts in [`context`] and their file in
//! [`mod@file`], the one in force in [`target`], the ways to write addresses in [`address`], durations in [`duration`] and
//! bootstrap tokens in [`join`], and the host keys of VMs in [`known_hosts`]. Called by the command line, and by the worker
//! when it joins.

pub mod address;
pub mod context;
pub mod duration;
pub mod file;
pub mod join;
pub mod known_hosts;
pub mod target;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The variable that names the home folder.
pub const HOME_VARIABLE: &str = "ORCHARD_HOME";

/// Why the home folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither variable is set.
    #[error("there is no home folder: neither ORCHARD_HOME nor HOME is set; set ORCHARD_HOME to a folder of your own")]
    Unknown,
    /// Something else is there.
    #[error("ORCHARD_HOME is set to {}, which is no folder; set it to a folder of your own", .0.display())]
    NotFolder(PathBuf),
    /// It cannot be made.
    #[error("cannot make the home folder {path}; set ORCHARD_HOME to a folder that can be written")]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A variable of the environment holds what no text can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is set to something that is not UTF-8 text; set it anew, or unset it")]
pub struct VariableError(pub &'static str);

/// A variable of the environment; an empty one counts as not set.
///
/// # Errors
/// [`VariableError`]: what cannot be read must not count as absent.
pub fn variable(name: &'static str) -> Result<Option<String>, VariableError> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(VariableError(name)),
    }
}

/// The folder that holds the contexts and, by default, the data of `orchard dev` and of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// `$ORCHARD_HOME`, else `~/.orchard`. Touches nothing.
    ///
    /// # Errors
    /// [`HomeError::Unknown`], [`HomeError::NotFolder`].
    pub fn locate() -> Result<Self, HomeError> {
        let home = Self::choose(std::env::var_os(HOME_VARIABLE), std::env::home_dir())?;
        match std::fs::metadata(&home.0) {
            Ok(about) if !about.is_dir() => Err(HomeError::NotFolder(home.0)),
            _ => Ok(home),
        }
    }

    fn choose(variable: Option<OsString>, user_home: Option<PathBuf>) -> Result<Self, HomeError> {
        match variable.filter(|value| !value.is_empty()) {
            Some(path) => Ok(Self(path.into())),
            None => user_home
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| Self(path.join(".orchard")))
                .ok_or(HomeError::Unknown),
        }
    }

    /// The home folder `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder, closed to others, if it is not there. One that is there keeps its mode: it may be a folder
    /// that the user shares on purpose, and each file in it that matters has mode 0600 by itself.
    ///
    /// # Errors
    /// [`HomeError::Create`].
    pub fn prepare(&self) -> Result<(), HomeError> {
        if self.0.is_dir() {
            return Ok(());
        }
        crate::identity::make_private_dir(&self.0).map_err(|source| HomeError::Create { path: self.0.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_over_the_users_home() {
        let chosen = |variable: Option<&str>, home: Option<&str>| {
            Home::choose(variable.map(Into::into), home.map(Into::into)).map(|home| home.path().to_owned()).ok()
        };
        assert_eq!(chosen(Some("/o"), Some("/u")), Some("/o".into()));
        assert_eq!(chosen(Some(""), Some("/u")), Some("/u/.orchard".into()));
        assert_eq!(chosen(None, None), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_new_home_is_private_and_an_old_one_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let new = Home::at(dir.path().join("a/b"));
        new.prepare().unwrap();
        assert_eq!(mode(new.path()), 0o700);
        std::fs::set_permissions(new.path(), PermissionsExt::from_mode(0o755)).unwrap();
        new.prepare().unwrap();
        assert_eq!(mode(new.path()), 0o755);
    }
}
