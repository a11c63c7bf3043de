//! The data folder of a server: used by one process at a time, holding the token.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::files::{self, Explain as _};
use crate::identity;
use crate::identity::folder::FolderLock;
use crate::model::secret::Secret;

/// The file of the token that lets workers and the first account in.
const TOKEN_NAME: &str = "token";
/// The longest token file: one of another kind is refused rather than read whole.
const MAX_TOKEN_BYTES: u64 = 4096;

/// A data folder. What runs in it takes hold of it; where that is several things, this does.
#[derive(Debug)]
pub(super) struct DataFolder {
    path: PathBuf,
    _lock: Option<FolderLock>,
}

impl DataFolder {
    /// Makes the folder if it is not there, closed to others.
    pub(super) fn make(path: &Path) -> anyhow::Result<Self> {
        let path =
            std::path::absolute(path).with_context(|| format!("cannot find the data folder {}", path.display()))?;
        identity::refuse_link(&path)
            .at(&path)
            .with_context(|| format!("cannot use the data folder {}", path.display()))?;
        if !path.is_dir() {
            identity::make_private_dir(&path).with_context(|| {
                format!("cannot make the data folder {}; choose another with --data-dir", path.display())
            })?;
        }
        Ok(Self { path, _lock: None })
    }

    /// The same, and takes hold of it.
    pub(super) fn claim(path: &Path) -> anyhow::Result<Self> {
        let made = Self::make(path)?;
        let lock = identity::folder::lock(&made.path)?;
        let foreign = || format!("cannot use the data folder {}", made.path.display());
        identity::refuse_foreign(&made.path).with_context(foreign)?;
        Ok(Self { _lock: Some(lock), ..made })
    }

    /// The same for a worker, which is to have the lock.
    pub(super) fn claim_for_worker(path: &Path) -> anyhow::Result<(Self, FolderLock)> {
        let made = Self::make(path)?;
        let lock = crate::worker::claim(&made.path)?;
        Ok((made, lock))
    }

    /// Where it is, in full.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the token is.
    pub(super) fn token_path(&self) -> PathBuf {
        self.path.join(TOKEN_NAME)
    }

    /// The token; the first call ever makes it, readable by the owner only.
    pub(super) fn token(&self) -> anyhow::Result<Secret> {
        let path = self.token_path();
        if path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
            return read_token(&path);
        }
        let token = identity::new_token();
        identity::write_private(&path, format!("{}\n", token.expose()).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(token)
    }
}

/// Reads a token file.
pub(super) fn read_token(path: &Path) -> anyhow::Result<Secret> {
    let cannot = || format!("cannot read the token file {}", path.display());
    files::look(path).with_context(cannot)?;
    let permissions = fs::metadata(path).with_context(cannot)?.permissions();
    if std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o077 != 0 {
        tracing::warn!("others may read {}; close it with chmod 600", path.display());
    }
    token_from(File::open(path).at(path).with_context(cannot)?).with_context(cannot)
}

/// Reads a token from anywhere; blanks and line breaks around it do not count.
pub(in crate::cli) fn token_from(source: impl std::io::Read) -> anyhow::Result<Secret> {
    let mut text = zeroize::Zeroizing::new(String::new());
    source.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TOKEN_BYTES {
        anyhow::bail!("it is longer than {MAX_TOKEN_BYTES} bytes and so no token");
    }
    match text.trim() {
        "" => anyhow::bail!("it is empty, and should hold the token"),
        token if token.contains(char::is_whitespace) => {
            anyhow::bail!("it holds more than one word, and should hold the token alone")
        }
        token => Ok(Secret::new(token)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_belongs_to_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataFolder::claim(&path).unwrap();
        let error = DataFolder::claim(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
        drop(first);
        DataFolder::claim(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn the_token_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let folder = DataFolder::claim(&path).unwrap();
        let token = folder.token().unwrap();
        assert_eq!(folder.token().unwrap(), token);
        assert_eq!(fs::metadata(folder.token_path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        assert_eq!(token_from(" abc\n".as_bytes()).unwrap().expose(), "abc");
        for bad in [String::new(), "\n".into(), "a b".into(), "x".repeat(5000)] {
            assert!(token_from(bad.as_bytes()).is_err());
        }
    }
}
