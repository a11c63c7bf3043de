//! The archive of what goes into a VM. Blocks: for a thread of its own.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::ProgressBar;
use tar::{Builder, EntryType, Header};

use crate::cli::files::Explain as _;

/// What is copied.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    /// What it is called.
    pub(super) name: String,
    /// The bytes of its files, as they were when it was looked at.
    pub(super) bytes: u64,
    folder: bool,
}

impl Source {
    /// Looks whether there is something to copy at `path`.
    pub(super) fn look(path: &Path, recursive: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        let about = fs::metadata(path).at(path).with_context(|| format!("cannot copy {shown}"))?;
        let folder = about.is_dir();
        anyhow::ensure!(folder || about.is_file(), "{shown} is neither a file nor a folder");
        anyhow::ensure!(!folder || recursive, "{shown} is a folder; copy it with -r");
        // `.` and `..` have names, too.
        let whole = fs::canonicalize(path).with_context(|| format!("cannot copy {shown}"))?;
        let name = path.file_name().or(whole.file_name()).and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{shown} has no name that is text"))?.to_owned();
        let mut bytes = about.len();
        if folder {
            bytes = 0;
            walk(path, &mut |_, _, about| {
                bytes += if about.is_file() { about.len() } else { 0 };
                Ok(())
            })?;
        }
        Ok(Self { path: path.to_owned(), name, bytes, folder })
    }

    /// The size of what is a single file.
    pub(super) fn single(&self) -> Option<u64> {
        (!self.folder).then_some(self.bytes)
    }

    /// Writes the archive: `data`, with all that is in it, and at last an empty file `end`.
    pub(super) fn pack(self, to: impl Write, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut archive = Builder::new(to);
        let top = Path::new("data");
        if self.folder {
            walk(&self.path, &mut |relative, path, about| {
                let name = if relative.as_os_str().is_empty() { top.to_owned() } else { top.join(relative) };
                add(&mut archive, &name, path, about, bar)
            })?;
        } else {
            let about = fs::metadata(&self.path)?;
            anyhow::ensure!(about.len() == self.bytes, "{} changed while it was copied", self.path.display());
            add(&mut archive, top, &self.path, &about, bar)?;
        }
        archive.append_data(&mut header(EntryType::Regular, 0o600, 0, 0), "end", io::empty())?;
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

/// Visits the folder `root` and all in it, each folder before what it holds; links are not followed.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Path, &Metadata) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut folders = vec![PathBuf::new()];
    visit(Path::new(""), root, &fs::metadata(root)?)?;
    while let Some(folder) = folders.pop() {
        let inside = root.join(&folder);
        let cannot = || format!("cannot copy {}", inside.display());
        for entry in fs::read_dir(&inside).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let relative = folder.join(entry.file_name());
            let about = entry.metadata().with_context(|| format!("cannot copy {}", entry.path().display()))?;
            visit(&relative, &entry.path(), &about)?;
            if about.is_dir() {
                folders.push(relative);
            }
        }
    }
    Ok(())
}

fn add(
    archive: &mut Builder<impl Write>,
    name: &Path,
    path: &Path,
    about: &Metadata,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let (mode, time) = (about.mode() & 0o777, u64::try_from(about.mtime()).unwrap_or(0));
    if about.is_dir() {
        archive.append_data(&mut header(EntryType::Directory, mode, 0, time), name, io::empty())?;
    } else if about.is_symlink() {
        let leads_to = fs::read_link(path).with_context(|| format!("cannot copy {}", path.display()))?;
        archive.append_link(&mut header(EntryType::Symlink, 0o777, 0, time), name, leads_to)?;
    } else if about.is_file() {
        let file = File::open(path).at(path).with_context(|| format!("cannot copy {}", path.display()))?;
        let whole = Whole { file, left: about.len(), path, bar };
        archive.append_data(&mut header(EntryType::Regular, mode, about.len(), time), name, whole)?;
    } else {
        bar.suspend(|| eprintln!("left out: {} is neither a file, a folder nor a link", path.display()));
    }
    Ok(())
}

fn header(kind: EntryType, mode: u32, size: u64, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// As many bytes of a file as its header says: one that grows is cut, as it was when it was looked at, and one that shrinks is an
/// error, as all that follows would be out of place.
struct Whole<'a> {
    file: File,
    left: u64,
    path: &'a Path,
    bar: &'a ProgressBar,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("{} shrank while it was copied", self.path.display())));
        }
        let read = u64::try_from(count).unwrap_or_default();
        self.left = self.left.saturating_sub(read);
        self.bar.inc(read);
        Ok(count)
    }
}
