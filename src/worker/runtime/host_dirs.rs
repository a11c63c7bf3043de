//! Whether a guest can be given the folders of this host that it asks for: looked at before it is made, and before each start,
//! by every runtime that can share them.

use std::io;
use std::path::{Path, PathBuf};

use super::RuntimeError;
use crate::model::settings::HostDir;

/// Whether the runtime can share archives, which it fetches by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archives {
    /// Their addresses are passed on; where they may lie is for the controller to allow.
    Taken,
    /// It shares folders only.
    Refused,
}

/// Whether the guest can be given these folders. The controller allows a folder by its path alone, so here the path must be
/// the real one: over a symbolic link anywhere in it the guest would see another folder than was allowed. Looked at before
/// each start, as what a path leads to can change.
///
/// # Errors
/// Which folder, why, and what to ask for instead.
pub fn check(dirs: &[HostDir], archives: Archives) -> Result<(), RuntimeError> {
    dirs.iter().try_for_each(|dir| check_one(dir, archives, |path| path.canonicalize()))
}

fn check_one(
    dir: &HostDir,
    archives: Archives,
    real: impl Fn(&Path) -> io::Result<PathBuf>,
) -> Result<(), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::State(format!("host directory {}: {}: {why}", dir.name, dir.path)));
    let path = Path::new(&dir.path);
    if !path.is_absolute() {
        return match archives {
            Archives::Taken if dir.path.starts_with("http://") || dir.path.starts_with("https://") => Ok(()),
            Archives::Taken => refuse("it is neither a full path nor the http(s) address of an archive".to_owned()),
            Archives::Refused => refuse("this runtime shares folders of the host only, no archives".to_owned()),
        };
    }
    let real = match real(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse("there is no such folder on this host".to_owned());
        }
        Err(error) => return refuse(format!("it cannot be looked at on this host: {error}")),
    };
    // Part by part: what is written differently and means the same is the same.
    if !real.components().eq(path.components()) {
        return refuse(format!(
            "a symbolic link leads from there to {}, and what is allowed is told by real paths; ask for that one",
            real.display()
        ));
    }
    if !real.is_dir() {
        return refuse("it is not a folder".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_shared_by_its_real_path_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("data/inner")).unwrap();
        std::fs::create_dir(root.join("secret")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink(root.join("secret"), root.join("data/link")).unwrap();
        std::os::unix::fs::symlink(root.join("data"), root.join("alias")).unwrap();
        let ask = |path: &str, archives| {
            let dir = HostDir { name: "d".into(), path: path.to_owned(), ro: true };
            check(&[dir], archives).map_err(|error| error.to_string())
        };
        for archives in [Archives::Taken, Archives::Refused] {
            let below = |path: &str| ask(&format!("{}/{path}", root.display()), archives);
            for fine in ["data", "data/", "data//inner", "data/./inner/"] {
                below(fine).unwrap();
            }
            let secret = root.join("secret").display().to_string();
            for (path, why) in [
                ("data/link", secret.as_str()),
                ("data/../secret", "symbolic link"),
                ("alias/inner", "data/inner"),
                ("dat", "no such folder"),
                ("file", "not a folder"),
            ] {
                let error = below(path).unwrap_err();
                assert!(error.contains(why), "{path}: {error}");
            }
        }
        ask("https://host/x.tgz", Archives::Taken).unwrap();
        assert!(ask("https://host/x.tgz", Archives::Refused).unwrap_err().contains("no archives"));
        assert!(ask("here", Archives::Taken).unwrap_err().contains("full path"));
    }
}
