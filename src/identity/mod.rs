//! Secrets and certificates: tokens and their comparison here, the controller's certificate in `ca`, rustls
//! configurations in `tls`. Names nothing else of the crate but `model`.

pub mod ca;
pub mod crash;
pub mod folder;
pub mod tls;

use std::io;
use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::model::account::SecretHash;
use crate::model::secret::Secret;

/// Bytes of randomness in a token: 256 bits.
pub const TOKEN_BYTES: usize = 32;

/// A new random token, as URL-safe text.
///
/// # Panics
/// When the operating system has no randomness to give: nothing safe can be done then.
pub fn new_token() -> Secret {
    let mut bytes = [0u8; TOKEN_BYTES];
    #[allow(clippy::expect_used)] // see "Panics"
    getrandom::fill(&mut bytes).expect("the operating system gives no random bytes");
    let token = Secret::new(BASE64URL_NOPAD.encode(&bytes));
    zeroize::Zeroize::zeroize(&mut bytes);
    token
}

/// What is stored of a secret in its place.
pub fn hash_of(secret: &str) -> SecretHash {
    SecretHash(Sha256::digest(secret.as_bytes()).into())
}

/// Whether `hash` is that of `secret`, found out in constant time.
pub fn is_hash_of(hash: &SecretHash, secret: &str) -> bool {
    hash.0.ct_eq(&hash_of(secret).0).into()
}

/// Compares two secrets in time that depends on their lengths only.
pub fn same_secret(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// Writes `contents` to `path` so that only the owner can read it and no reader ever sees half of it: a new file of
/// mode 0600 beside it, synced, then renamed over it.
///
/// # Errors
/// Whatever the file system says.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let mut part = name.to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = folder.join(part);
    crash::point()?;
    let _ = std::fs::remove_file(&part);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    crash::point()?;
    let mut file = options.open(&part)?;
    crash::point()?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    crash::point()?;
    if let Err(error) = written.and_then(|()| std::fs::rename(&part, path)) {
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    crash::point()?;
    sync_folder(folder)
}

/// Removes what a process that was killed while it wrote private files has left in `folder`. Only for a folder in which no
/// other process writes.
///
/// # Errors
/// Whatever the file system says.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().and_then(|name| name.strip_suffix(".part")).and_then(|name| name.rsplit_once('.'));
        if ours.is_some_and(|(_, id)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes `path` and its parents; the folder itself may be entered by its owner only. What was made is there after a loss of
/// power, too.
///
/// # Errors
/// Whatever the file system says.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    std::fs::create_dir_all(path)?;
    for folder in missing {
        match sync_folder(folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))) {
            // A folder in which one may make others without being allowed to list them.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

/// Has the names in `folder` be on the disk on return: a file that was synced can otherwise still be nowhere.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Refuses `path` if it is a symbolic link: a data folder holds keys, and where a link leads can be changed by whoever owns
/// the folder around it.
///
/// # Errors
/// Says that it is a link; whatever the file system says, unless nothing is there.
pub fn refuse_link(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.is_symlink() => {
            let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("it is a symbolic link, and others may change where it leads; name {} itself", real.display()),
            ))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a folder that holds keys unless it and all in it are ours alone: no symbolic links, which could lead a write
/// elsewhere or bring foreign keys in, nothing of other users, and nothing that others may write to. A folder that is not
/// there is fine.
///
/// # Errors
/// Names what is wrong and with which file; whatever the file system says.
pub fn refuse_foreign(folder: &Path) -> io::Result<()> {
    refuse_link(folder)?;
    match std::fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => refuse_foreign_file(folder, &about?)?,
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        refuse_foreign_file(&path, &entry.metadata()?)?;
    }
    Ok(())
}

fn refuse_foreign_file(path: &Path, about: &std::fs::Metadata) -> io::Result<()> {
    let refuse =
        |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}", path.display())));
    if about.is_symlink() {
        return refuse("is a symbolic link, which does not belong here; put what it leads to in its place".to_owned());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (owner, own) = (about.uid(), rustix::process::geteuid().as_raw());
        if owner != own {
            return refuse(format!(
                "belongs to user {owner}, not to user {own} who runs this; give it to that one (chown)"
            ));
        }
        if about.mode() & 0o022 != 0 {
            return refuse(format!(
                "may be written to by others (mode {:04o}); run: chmod go-w on it",
                about.mode() & 0o777
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_differ() {
        let (a, b) = (new_token(), new_token());
        assert_eq!(a.expose().len(), 43);
        assert!(!same_secret(a.expose(), b.expose()) && same_secret(a.expose(), a.expose()));
        assert!(is_hash_of(&hash_of(a.expose()), a.expose()) && !is_hash_of(&hash_of(a.expose()), b.expose()));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_refused_and_its_end_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        refuse_link(&real).unwrap();
        refuse_link(&dir.path().join("missing")).unwrap();
        assert!(refuse_link(&link).unwrap_err().to_string().contains("real itself"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_of_keys_holds_nothing_that_others_could_have_put_there() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        refuse_foreign(&folder).unwrap();
        make_private_dir(&folder).unwrap();
        std::fs::write(folder.join("key"), "k").unwrap();
        refuse_foreign(&folder).unwrap();
        std::fs::set_permissions(folder.join("key"), PermissionsExt::from_mode(0o666)).unwrap();
        assert!(refuse_foreign(&folder).unwrap_err().to_string().contains("key"));
        std::fs::remove_file(folder.join("key")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("key")).unwrap();
        assert!(refuse_foreign(&folder).unwrap_err().to_string().contains("symbolic link"));
        std::fs::remove_file(folder.join("key")).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(refuse_foreign(&folder).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(refuse_foreign(&link).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_private_and_replaced_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        for file in ["secret.123.part", "secret.part", "secret.x.part", "9.part"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    }
}
