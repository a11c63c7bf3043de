//! Unpacks what a guest sends, which may be anything: nothing is written outside of a fresh folder beside the target, and
//! nothing has its name before all of it came. Blocks: for a thread of its own.
//!
//! Links are made last, so that nothing can be written through one, and only those that stay within what is copied.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use indicatif::ProgressBar;
use tar::{Archive, Entry, EntryType};

/// Folders and links in one copy: each is remembered to its end.
const MAX_REMEMBERED: usize = 1_000_000;
/// What may follow the end of an archive, in bytes: `tar` fills up its last record, of 10 KiB unless told otherwise.
const MAX_TRAILER: u64 = 1 << 20;
/// Entries that are left out and told of by name.
const MAX_TOLD: usize = 100;

/// Where it goes.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    force: bool,
}

impl Target {
    /// What `to` means for something called `name`: a folder that is there gets it under its name.
    pub(super) fn choose(to: &Path, name: Option<&OsStr>, force: bool) -> anyhow::Result<Self> {
        let shown = to.display();
        let path = if to.is_dir() {
            let name = name.with_context(|| format!("{shown} is a folder; say what the copy is to be called in it"))?;
            to.join(name)
        } else {
            ensure!(
                !to.as_os_str().as_bytes().ends_with(b"/"),
                "there is no folder {shown}; make it first, with mkdir -p"
            );
            to.to_owned()
        };
        ensure!(path.file_name().is_some(), "{shown} is no name for a copy");
        let parent = parent(&path);
        ensure!(parent.is_dir(), "there is no folder {}; make it first, with mkdir -p", parent.display());
        Ok(Self { path, force })
    }

    /// What the user sees of it.
    pub(super) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// Refuses what cannot take the place of what is there.
    fn check(&self, folder: bool) -> anyhow::Result<()> {
        let shown = self.path.display();
        let there = match fs::symlink_metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
        };
        match (folder, there.is_dir()) {
            (false, true) => bail!("{shown} is a folder, and no file can take its place"),
            (true, false) => bail!("{shown} is there already and is no folder"),
            (true, true) if !self.force => {
                bail!("the folder {shown} is there already; replace it with --force, or choose another name")
            }
            _ => Ok(()),
        }
    }

    /// Unpacks the archive beside the target.
    pub(super) fn unpack(self, from: impl Read, bar: &ProgressBar) -> anyhow::Result<Unpacked> {
        let part = Part::new(parent(&self.path))?;
        let mut archive = Archive::new(from);
        let mut tree = Tree { root: part.0.join("data"), folders: Vec::new(), links: Vec::new(), left_out: Vec::new() };
        let mut folder = None;
        for entry in archive.entries().context("the guest sent no archive")? {
            let mut entry = entry.context("the guest sent no whole archive")?;
            let path = within(&entry.path_bytes())?;
            let is_folder = *folder.get_or_insert(path.is_empty());
            if tree.is_new() {
                self.check(is_folder)?;
            }
            match is_folder {
                true => tree.add(&path, &mut entry, bar)?,
                false => {
                    ensure!(
                        path.len() == 1 && is_file(&entry),
                        "the guest sent something else than the file asked for"
                    );
                    ensure!(tree.is_new(), "the guest sent more than the file that was asked for");
                    tree.add(&[], &mut entry, bar)?;
                }
            }
        }
        let folder = folder.context("the guest sent nothing")?;
        // The guest is not to find its pipe closed while it fills its last record.
        let rest = io::copy(&mut archive.into_inner().take(MAX_TRAILER + 1), &mut io::sink())?;
        ensure!(rest <= MAX_TRAILER, "the guest sent more than an archive");
        tree.finish()?;
        Ok(Unpacked { target: self, part, folder, left_out: tree.left_out })
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Something that is there whole, and has no name yet. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Unpacked {
    target: Target,
    part: Part,
    folder: bool,
    left_out: Vec<String>,
}

impl Unpacked {
    /// Gives it its name; yields what was left out.
    pub(super) fn put_in_place(self) -> anyhow::Result<Vec<String>> {
        self.target.check(self.folder)?;
        let path = &self.target.path;
        let cannot = || format!("cannot put {} in its place", path.display());
        if self.folder && fs::symlink_metadata(path).is_ok() {
            fs::rename(path, self.part.0.join("old")).with_context(cannot)?;
        }
        fs::rename(self.part.0.join("data"), path).with_context(cannot)?;
        Ok(self.left_out)
    }
}

/// A folder of our own that goes when it is dropped.
#[derive(Debug)]
struct Part(PathBuf);

impl Part {
    fn new(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.join(format!(".orchard-{}", uuid::Uuid::new_v4().simple()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("cannot write in {}", parent.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("WARNING: {} could not be removed: {error}", self.0.display());
        }
    }
}

/// The parts of an entry's path. What leads elsewhere is refused, not mended: no honest archive has it.
fn within(bytes: &[u8]) -> anyhow::Result<Vec<OsString>> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_owned()),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("the guest sent a file that would lie elsewhere ({path:?}); nothing was copied")
            }
        }
    }
    Ok(parts)
}

fn is_file(entry: &Entry<'_, impl Read>) -> bool {
    matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse)
}

/// Whether a link in a folder `depth` below the root stays within when it leads to `to`. Only from the link's own folder, which
/// is a real one, may it go up: after a name, which may be another link, `..` could lead anywhere.
fn stays_within(depth: usize, to: &Path) -> bool {
    let (mut up, mut down) = (0, false);
    for part in to.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => down = true,
            Component::ParentDir if !down => up += 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth
}

/// What is being unpacked.
struct Tree {
    root: PathBuf,
    /// With the modes that they get at the end: one may not be for writing.
    folders: Vec<(PathBuf, u32)>,
    links: Vec<(Vec<OsString>, PathBuf)>,
    left_out: Vec<String>,
}

impl Tree {
    fn is_new(&self) -> bool {
        fs::symlink_metadata(&self.root).is_err()
    }

    fn place(&self, path: &[OsString]) -> PathBuf {
        path.iter().fold(self.root.clone(), |place, part| place.join(part))
    }

    fn add(&mut self, path: &[OsString], entry: &mut Entry<'_, impl Read>, bar: &ProgressBar) -> anyhow::Result<()> {
        ensure!(self.folders.len() + self.links.len() < MAX_REMEMBERED, "the guest sent too many folders and links");
        let place = self.place(path);
        let shown = || path.iter().collect::<PathBuf>().display().to_string();
        let cannot = || format!("cannot write {}", place.display());
        let mode = entry.header().mode().unwrap_or(0o600) & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => {
                DirBuilder::new().mode(0o700).create(&place).with_context(cannot)?;
                self.folders.push((place, mode));
            }
            _ if is_file(entry) => {
                // Anything that is there, a link above all, makes this fail.
                let mut options = File::options();
                let mut file = options.write(true).create_new(true).mode(0o600).open(&place).with_context(cannot)?;
                let (size, count) =
                    (entry.size(), io::copy(entry, &mut bar.wrap_write(&mut file)).with_context(cannot)?);
                ensure!(count == size, "{} was cut short: {count} bytes came of {size}", shown());
                file.set_permissions(Permissions::from_mode(mode)).with_context(cannot)?;
            }
            EntryType::Symlink => match entry.link_name().ok().flatten() {
                Some(to) if stays_within(path.len().saturating_sub(1), &to) => {
                    self.links.push((path.to_owned(), to.into_owned()));
                }
                to => self.leave_out(format!("{} is a link that leads out of the copy, to {to:?}", shown())),
            },
            EntryType::Link => {
                let to = entry.link_name_bytes().context("a second name of no file")?;
                let first = self.place(&within(&to)?);
                let about = fs::symlink_metadata(&first).with_context(|| format!("{} is no second name", shown()))?;
                ensure!(about.is_file(), "the guest sent a second name of what is no file ({})", shown());
                fs::hard_link(first, place.clone()).with_context(cannot)?;
            }
            _ => self.leave_out(format!("{} is neither a file, a folder nor a link", shown())),
        }
        Ok(())
    }

    fn leave_out(&mut self, why: String) {
        match self.left_out.len() {
            MAX_TOLD => self.left_out.push("and more".to_owned()),
            told if told < MAX_TOLD => self.left_out.push(why),
            _ => {}
        }
    }

    fn finish(&self) -> anyhow::Result<()> {
        for (path, to) in &self.links {
            let place = self.place(path);
            std::os::unix::fs::symlink(to, &place).with_context(|| format!("cannot write {}", place.display()))?;
        }
        for (folder, mode) in self.folders.iter().rev() {
            let set = fs::set_permissions(folder, Permissions::from_mode(*mode));
            set.with_context(|| format!("cannot write {}", folder.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    /// An archive of (kind, path, content or link, mode), paths as they are.
    fn archive(entries: &[(EntryType, &str, &str, u32)]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        for (kind, path, content, mode) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            // Not by the setters, which refuse what is to be tested.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let data = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_size(data.len() as u64);
            header.set_cksum();
            archive.append(&header, data).unwrap();
        }
        archive.into_inner().unwrap()
    }

    const DIR: EntryType = EntryType::Directory;
    const FILE: EntryType = EntryType::Regular;
    const SYM: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    fn unpack(dir: &Path, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let target = Target::choose(&dir.join("copy"), None, false)?;
        target.unpack(bytes, &ProgressBar::hidden())?.put_in_place()
    }

    #[test]
    fn a_folder_arrives_with_its_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[
            (DIR, "./", "", 0o755),
            (DIR, "./sub dir/", "", 0o500),
            (FILE, "./sub dir/new\nline", "text", 0o4711),
            (SYM, "./link", "sub dir/new\nline", 0o777),
            (HARD, "./again", "./sub dir/new\nline", 0o644),
            (SYM, "./out", "../../etc/passwd", 0o777),
            (EntryType::Fifo, "./pipe", "", 0o644),
        ]);
        let left_out = unpack(dir.path(), &bytes).unwrap();
        assert!(left_out.len() == 2 && left_out[0].contains("out") && left_out[1].contains("pipe"), "{left_out:?}");
        let copy = dir.path().join("copy");
        assert_eq!(fs::read_to_string(copy.join("link")).unwrap(), "text");
        assert_eq!(fs::read_to_string(copy.join("again")).unwrap(), "text");
        let mode = |path: &str| fs::metadata(copy.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("sub dir"), mode("sub dir/new\nline")), (0o500, 0o711));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let there = Target { path: copy.clone(), force: false };
        let refused = there.unpack(&bytes[..], &ProgressBar::hidden()).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        fs::set_permissions(copy.join("sub dir"), Permissions::from_mode(0o700)).unwrap();
        let force = Target::choose(&copy.join("../copy"), None, true);
        assert!(force.is_err(), "it is a folder, and the copy has no name");
        let target = Target { path: copy.clone(), force: true };
        target.unpack(&bytes[..], &ProgressBar::hidden()).unwrap().put_in_place().unwrap();
    }

    #[test]
    fn a_hostile_guest_writes_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let (folder, file) = (outside.path().to_str().unwrap(), victim.to_str().unwrap());
        let hostile: &[&[(EntryType, &str, &str, u32)]] = &[
            &[(DIR, "./", "", 0o755), (FILE, "../victim", "x", 0o644)],
            &[(DIR, "./", "", 0o755), (FILE, file, "x", 0o644)],
            &[(DIR, "./", "", 0o755), (FILE, "./a/../../victim", "x", 0o644)],
            // Through a link, made first or in place of a folder.
            &[(DIR, "./", "", 0o755), (SYM, "./l", folder, 0o777), (FILE, "./l/victim", "x", 0o644)],
            &[(DIR, "./", "", 0o755), (SYM, "./l", ".", 0o777), (FILE, "./l/x", "x", 0o644)],
            &[(DIR, "./", "", 0o755), (FILE, "./a", "x", 0o644), (FILE, "./a", "y", 0o644)],
            &[(DIR, "./", "", 0o755), (SYM, "./a", "b", 0o777), (FILE, "./a", "y", 0o644)],
            &[(DIR, "./", "", 0o755), (HARD, "./h", file, 0o644)],
            &[(DIR, "./", "", 0o755), (HARD, "./h", "../../victim", 0o644)],
            &[(DIR, "./", "", 0o755), (DIR, "./", "", 0o755)],
            &[(FILE, "./one", "x", 0o644), (FILE, "./two", "x", 0o644)],
            &[(SYM, "./one", file, 0o777)],
            &[(FILE, "../victim", "x", 0o644)],
            &[(FILE, "./deep/one", "x", 0o644)],
            &[],
        ];
        for entries in hostile {
            let dir = tempfile::tempdir_in(outside.path()).unwrap();
            let refused = unpack(dir.path(), &archive(entries));
            assert!(refused.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{entries:?} left something");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{entries:?}");
        }
    }

    #[test]
    fn an_archive_that_is_cut_short_is_no_copy() {
        let whole = archive(&[(FILE, "./one", &"x".repeat(5000), 0o644)]);
        for length in [0, 100, 512, 600, 4000] {
            let dir = tempfile::tempdir().unwrap();
            assert!(unpack(dir.path(), &whole[..length]).is_err(), "{length}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{length}");
        }
    }

    #[test]
    fn links_that_could_lead_out_are_known() {
        for (depth, to, within) in [
            (0, "a/b", true),
            (1, "../a", true),
            (0, "../a", false),
            (2, "../../a/./b", true),
            (5, "a/../b", false),
            (5, "/a", false),
            (0, ".", true),
        ] {
            assert_eq!(stays_within(depth, Path::new(to)), within, "{depth} {to}");
        }
    }

    #[test]
    fn a_folder_that_is_there_gets_the_copy_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = |to: &Path, name: Option<&str>| Target::choose(to, name.map(OsStr::new), false);
        assert_eq!(chosen(dir.path(), Some("a")).unwrap().path, dir.path().join("a"));
        assert_eq!(chosen(&dir.path().join("b"), Some("a")).unwrap().path, dir.path().join("b"));
        assert!(chosen(dir.path(), None).is_err());
        assert!(chosen(&dir.path().join("b/"), Some("a")).unwrap_err().to_string().contains("no folder"));
        assert!(chosen(&dir.path().join("b/c"), Some("a")).is_err());
    }
}
