//! Where a picture is written. A file that is there is only replaced if that was asked for, and then all at once: whoever looks
//! at it sees the old picture or the new one.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::super::UsageError;
use crate::vnc::picture::Picture;

/// Where a picture goes.
#[derive(Debug)]
pub(super) enum Destination {
    /// The standard output.
    Stdout,
    /// A file that must not be there.
    New(PathBuf),
    /// A file, in the place of what may be there.
    Replaced(PathBuf),
    /// Something there that is no file but can be written to, such as a pipe.
    Special(PathBuf),
}

impl Destination {
    /// Looks, before anything is asked of a VM, whether there is a place for it.
    pub(super) fn choose(path: &Path, force: bool) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return match io::stdout().is_terminal() {
                true => {
                    Err(UsageError("a terminal cannot show a picture: send the standard output to a file".into())
                        .into())
                }
                false => Ok(Destination::Stdout),
            };
        }
        let path = path.to_owned();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => anyhow::bail!("{} is a folder; name a file", path.display()),
            Ok(_) if !force => anyhow::bail!("{} is there already; --force replaces it", path.display()),
            Ok(found) if found.is_file() => Ok(Destination::Replaced(path)),
            Ok(_) => Ok(Destination::Special(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                match folder.is_none_or(Path::is_dir) {
                    true => Ok(Destination::New(path)),
                    false => anyhow::bail!(
                        "cannot write {}: its folder is not there; make that first, with mkdir -p",
                        path.display()
                    ),
                }
            }
            Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
        }
    }

    /// Writes it as PNG; yields the file, if it is one.
    pub(super) fn write(self, picture: &Picture) -> anyhow::Result<Option<PathBuf>> {
        let mut png = Vec::new();
        picture.write_png(&mut png).context("cannot make a PNG of the picture")?;
        let path = match self {
            Destination::Stdout => {
                let mut out = io::stdout().lock();
                let written = out.write_all(&png).and_then(|()| out.flush());
                written.map_err(super::output::OutputError::from)?;
                return Ok(None);
            }
            Destination::New(path) => {
                let written = create(&path, &png);
                written.with_context(|| format!("cannot write {}", path.display()))?;
                path
            }
            Destination::Replaced(path) => {
                let written = replace(&path, &png);
                written.with_context(|| format!("cannot replace {}", path.display()))?;
                path
            }
            Destination::Special(path) => {
                let opened = OpenOptions::new().write(true).truncate(true).open(&path);
                let written = opened.and_then(|mut file| file.write_all(&png));
                written.with_context(|| format!("cannot write {}", path.display()))?;
                path
            }
        };
        Ok(Some(path))
    }
}

/// A file that was not there; none at all if it cannot be written whole.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", uuid::Uuid::new_v4().simple()));
    let part = path.with_file_name(name);
    create(&part, bytes)?;
    fs::rename(&part, path).inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vnc::picture::Size;

    fn picture() -> Picture {
        Picture::blank(Size { width: 2, height: 1 }).unwrap()
    }

    #[test]
    fn what_is_there_stays_unless_it_is_to_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.png");
        let first = Destination::choose(&file, false).unwrap();
        assert_eq!(first.write(&picture()).unwrap(), Some(file.clone()));
        assert!(fs::read(&file).unwrap().starts_with(b"\x89PNG"));

        fs::write(&file, "mine").unwrap();
        let refused = Destination::choose(&file, false).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        assert!(Destination::New(file.clone()).write(&picture()).is_err(), "it came in between");
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        Destination::choose(&file, true).unwrap().write(&picture()).unwrap();
        assert!(fs::read(&file).unwrap().starts_with(b"\x89PNG"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_place_that_is_none_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Destination::choose(dir.path(), true).is_err());
        assert!(Destination::choose(&dir.path().join("absent/x.png"), true).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("to"), &link).unwrap();
        assert!(Destination::choose(&link, false).is_err());
        assert!(matches!(Destination::choose(Path::new("/dev/null"), true), Ok(Destination::Special(_))));
    }
}
