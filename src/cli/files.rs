//! What to say of a file of this machine that was named and cannot be used: what is there in its place, and what to do.

use std::io;
use std::path::Path;

use anyhow::anyhow;

/// For what the system says of files.
pub(super) trait Explain<T> {
    /// The same with an error that says, as far as that is known, what was found at `path` and what to do.
    fn at(self, path: &Path) -> anyhow::Result<T>;
}

impl<T> Explain<T> for io::Result<T> {
    fn at(self, path: &Path) -> anyhow::Result<T> {
        self.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("{}; check the path", missing(path)),
            io::ErrorKind::NotADirectory => anyhow!("a part of it is a file, and no folder; check the path"),
            io::ErrorKind::IsADirectory => anyhow!("it is a folder; name a file"),
            io::ErrorKind::PermissionDenied => {
                anyhow!("{error}; `ls -ld {}` shows who may", path.display())
            }
            _ => error.into(),
        })
    }
}

/// Looks whether the file `path` is there and can be read, before anything is begun that needs it. It is not opened: a pipe would be
/// used up by that.
///
/// # Errors
/// Why not, and what to do.
pub(super) fn look(path: &Path) -> anyhow::Result<()> {
    rustix::fs::access(path, rustix::fs::Access::READ_OK).map_err(io::Error::from).at(path)?;
    if path.is_dir() { Err(io::Error::from(io::ErrorKind::IsADirectory)).at(path) } else { Ok(()) }
}

/// The part of `path` that is not there, and where it is looked for.
fn missing(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for at in whole.ancestors() {
        let (Some(name), Some(folder)) = (at.file_name(), at.parent()) else { continue };
        if at.is_symlink() {
            return format!("{} is a link to what is not there", at.display());
        }
        if folder.is_dir() {
            return format!("there is no {name:?} in {}", folder.display());
        }
    }
    "it is not there".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let said = |name: &str| format!("{:#}", look(&dir.path().join(name)).unwrap_err());
        let folder = dir.path().display();
        assert_eq!(said("a"), format!("there is no \"a\" in {folder}; check the path"));
        assert_eq!(said("a/b/c"), format!("there is no \"a\" in {folder}; check the path"));
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(said("link"), format!("{folder}/link is a link to what is not there; check the path"));
        assert_eq!(said(""), "it is a folder; name a file");
        std::fs::write(dir.path().join("file"), "").unwrap();
        look(&dir.path().join("file")).unwrap();
        assert!(
            look(Path::new("surely-not-here"))
                .unwrap_err()
                .to_string()
                .contains("there is no \"surely-not-here\" in /")
        );
    }
}
