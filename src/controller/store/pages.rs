//! Looks through the pages of LMDB's file before LMDB maps it. LMDB believes what stands in a page: a damaged one would lead
//! it out of the map, which ends the process without a word. Called by the store while it opens.
//!
//! Only the structure is looked at, which is what LMDB relies on: that each page is what its parent takes it for, and that
//! nothing points out of its page or its file. Records are checked by whoever reads them. Changes that leave the structure
//! sound cannot be seen; LMDB keeps no checksums.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::tables::MOST_AT_ONCE;

/// Pages that are looked at: more than a store needs that has not been told very much by scripts, and a fifth of a second's
/// work. What happened is looked at last.
const MAX_PAGES: usize = 1 << 16;
/// So many pages of a sound file may be missing at its end: those that a transaction took and gave back.
const MAX_MISSING: u64 = 1 << 14;

const MAGIC: u32 = 0xBEEF_C0DE;
const HEADER: usize = 16;
const NODE: usize = 8;
/// Length of what describes a tree.
const TREE: usize = 48;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
/// All kinds of pages, those with fixed sizes and duplicates included, which are not used here.
const KINDS: u16 = 0x6F;
const ON_OTHER_PAGES: u16 = 1;
const IS_TREE: u16 = 2;
const NO_PAGE: u64 = u64::MAX;
/// LMDB's own limit.
const MAX_DEPTH: u16 = 32;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It cannot be read.
    #[error("its file cannot be read")]
    Read(#[from] io::Error),
    /// It is not sound.
    #[error("page {page} of {of} is damaged: {why}; restore a backup with `orchard controller restore`")]
    Damaged {
        /// Which page.
        page: u64,
        /// How many there are.
        of: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Looks through the file `path`. One that is not there, or not LMDB's at all, is for LMDB to judge.
///
/// # Errors
/// [`PagesError`].
pub(super) fn check(path: &Path) -> Result<(), PagesError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    let mut head = [0; 4096];
    if length == 0 || cfg!(not(target_pointer_width = "64")) {
        return Ok(());
    }
    if file.read_exact_at(&mut head, 0).is_err() || u32_at(&head, HEADER) != Some(MAGIC) {
        return Ok(());
    }
    let size = u32_at(&head, HEADER + 24).and_then(|size| usize::try_from(size).ok());
    let Some(size) = size.filter(|size| size.is_power_of_two() && (512..=0x8000).contains(size)) else { return Ok(()) };
    let mut pages = Pages { file, size, pages: 0, seen: Vec::new(), left: MAX_PAGES.into() };
    let metas = [pages.read(0)?, pages.read(1)?];
    let newest =
        metas.iter().filter(|meta| u32_at(meta, HEADER) == Some(MAGIC)).max_by_key(|meta| u64_at(meta, HEADER + 128));
    let Some(meta) = newest else { return Ok(()) };
    let last = u64_at(meta, HEADER + 120).unwrap_or(NO_PAGE);
    pages.pages = last.saturating_add(1);
    if pages.pages > (length / size as u64).saturating_add(MAX_MISSING) {
        return Err(pages.damaged(0, "it tells of more pages than the file has"));
    }
    pages.seen.resize_with(usize::try_from(pages.pages).unwrap_or(0), AtomicBool::default);
    let mut walk = Walk { pages: &pages, later: Vec::new() };
    for at in [HEADER + 24, HEADER + 24 + TREE] {
        let tree = meta.get(at..at + TREE).unwrap_or_default().to_vec();
        walk.tree(0, &tree, if at == HEADER + 24 { Holds::FreePages } else { Holds::Trees })?;
    }
    // The largest are those of what happened; what is, comes first.
    let mut tables = walk.later;
    tables.sort_by_key(|(_, tree)| u64_at(tree, 16));
    let next = Mutex::new(tables.into_iter());
    let look = || {
        let mut walk = Walk { pages: &pages, later: Vec::new() };
        loop {
            let table = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((page, tree)) = table else { return Ok(()) };
            walk.tree(page, &tree, Holds::Records)?;
        }
    };
    std::thread::scope(|scope| {
        let others = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE) - 1;
        let others: Vec<_> = (0..others).map(|_| scope.spawn(look)).collect();
        let mut found = look();
        for other in others {
            found = found.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        found
    })
}

/// What the leaves of a tree hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    FreePages,
    Trees,
    Records,
}

/// What all threads that look share.
struct Pages {
    file: File,
    /// Of a page.
    size: usize,
    pages: u64,
    /// Pages that something points to already.
    seen: Vec<AtomicBool>,
    left: AtomicUsize,
}

impl Pages {
    fn damaged(&self, page: u64, why: &'static str) -> PagesError {
        PagesError::Damaged { page, of: self.pages, why }
    }

    fn read(&self, page: u64) -> Result<Vec<u8>, PagesError> {
        let mut bytes = vec![0; self.size];
        let at = page.saturating_mul(self.size as u64);
        self.file.read_exact_at(&mut bytes, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(page, "the file ends before it"),
            _ => error.into(),
        })?;
        Ok(bytes)
    }

    /// Notes that something on `from` points to `page`.
    fn claim(&self, from: u64, page: u64) -> Result<(), PagesError> {
        match usize::try_from(page).ok().and_then(|page| self.seen.get(page)) {
            Some(seen) if page > 1 && !seen.swap(true, Ordering::Relaxed) => Ok(()),
            Some(_) => Err(self.damaged(from, "it points to a page that is used already")),
            None => Err(self.damaged(from, "it points out of the file")),
        }
    }

    /// Whether another page may be looked at.
    fn may_look(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

struct Walk<'a> {
    pages: &'a Pages,
    /// Trees of which only the description was seen, and on which page.
    later: Vec<(u64, Vec<u8>)>,
}

impl Walk<'_> {
    fn tree(&mut self, from: u64, tree: &[u8], holds: Holds) -> Result<(), PagesError> {
        let (flags, depth) = (u16_at(tree, 4).unwrap_or(0), u16_at(tree, 6).unwrap_or(u16::MAX));
        let root = u64_at(tree, 40).unwrap_or(NO_PAGE);
        if holds == Holds::Records && flags != 0 {
            return Err(self.pages.damaged(from, "it describes a table of another kind"));
        }
        let counts = [8, 16, 24].map(|at| u64_at(tree, at).unwrap_or(NO_PAGE));
        if counts.iter().any(|count| *count > self.pages.pages) {
            return Err(self.pages.damaged(from, "it tells of more pages than there are"));
        }
        if depth > MAX_DEPTH || (root == NO_PAGE) != (depth == 0) {
            return Err(self.pages.damaged(from, "it describes a table that cannot be"));
        }
        if root != NO_PAGE {
            self.page(from, root, depth, holds)?;
        }
        Ok(())
    }

    /// `level` pages deep from here, itself included.
    fn page(&mut self, from: u64, number: u64, level: u16, holds: Holds) -> Result<(), PagesError> {
        self.pages.claim(from, number)?;
        if !self.pages.may_look() {
            return Ok(());
        }
        let bytes = self.pages.read(number)?;
        let kind = u16_at(&bytes, 10).unwrap_or(0) & KINDS;
        let wanted = if level > 1 { BRANCH } else { LEAF };
        if u64_at(&bytes, 0) != Some(number) || kind != wanted {
            return Err(self.pages.damaged(number, "it is not what belongs here"));
        }
        let bounds = [u16_at(&bytes, 12), u16_at(&bytes, 14)].map(|bound| bound.map_or(0, usize::from));
        let [lower, upper] = bounds;
        if lower < HEADER || lower > upper || upper > self.pages.size || (wanted == BRANCH && lower < HEADER + 4) {
            return Err(self.pages.damaged(number, "its bounds are wrong"));
        }
        for index in (HEADER..lower.saturating_sub(1)).step_by(2) {
            let at = u16_at(&bytes, index).map_or(0, usize::from);
            let Some(node) = bytes.get(at..).filter(|node| at >= upper && node.len() >= NODE) else {
                return Err(self.pages.damaged(number, "an entry lies outside of it"));
            };
            match wanted {
                BRANCH => self.branch(number, node, level, holds)?,
                _ => self.leaf(number, node, holds)?,
            }
        }
        Ok(())
    }

    fn branch(&mut self, number: u64, node: &[u8], level: u16, holds: Holds) -> Result<(), PagesError> {
        let word = |at| u64::from(u16_at(node, at).unwrap_or(0));
        let key = usize::from(u16_at(node, 6).unwrap_or(u16::MAX));
        if node.len() < NODE + key {
            return Err(self.pages.damaged(number, "a key reaches out of it"));
        }
        self.page(number, word(0) | word(2) << 16 | word(4) << 32, level.saturating_sub(1), holds)
    }

    fn leaf(&mut self, number: u64, node: &[u8], holds: Holds) -> Result<(), PagesError> {
        let word = |at| u16_at(node, at).map_or(usize::MAX, usize::from);
        let (length, flags, key) = (word(0) | word(2) << 16, u16_at(node, 4).unwrap_or(0), word(6));
        let rest = node.get(NODE + key..).unwrap_or_default();
        let far = flags & ON_OTHER_PAGES != 0;
        let Some(value) = rest.get(..if far { 8 } else { length }) else {
            return Err(self.pages.damaged(number, "a value reaches out of it"));
        };
        if node.len() < NODE + key
            || flags & !(ON_OTHER_PAGES | IS_TREE) != 0
            || (flags & IS_TREE != 0) != (holds == Holds::Trees)
        {
            return Err(self.pages.damaged(number, "an entry is of another kind"));
        }
        match holds {
            Holds::Trees if value.len() == TREE && !far => self.later.push((number, value.to_vec())),
            Holds::Trees => return Err(self.pages.damaged(number, "it describes no table")),
            Holds::FreePages if far => {
                let first = u64_at(value, 0).unwrap_or(NO_PAGE);
                self.overflow(number, first, length)?;
            }
            Holds::FreePages => self.free(number, value)?,
            Holds::Records if far => self.overflow(number, u64_at(value, 0).unwrap_or(NO_PAGE), length)?,
            Holds::Records => {}
        }
        Ok(())
    }

    /// Free pages by their number, how many first.
    fn free(&mut self, number: u64, value: &[u8]) -> Result<(), PagesError> {
        let count = u64_at(value, 0).and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
        let listed = count.checked_mul(8).and_then(|length| value.get(8..)?.get(..length));
        let Some(listed) = listed else { return Err(self.pages.damaged(number, "its list of free pages is wrong")) };
        for page in listed.chunks_exact(8) {
            self.pages.claim(number, u64_at(page, 0).unwrap_or(NO_PAGE))?;
        }
        Ok(())
    }

    fn overflow(&mut self, number: u64, first: u64, length: usize) -> Result<(), PagesError> {
        let needed = (HEADER - 1).saturating_add(length) / self.pages.size + 1;
        for page in 0..needed as u64 {
            self.pages.claim(number, first.saturating_add(page))?;
        }
        let bytes = self.pages.read(first)?;
        let pages = u32_at(&bytes, 12).and_then(|pages| usize::try_from(pages).ok());
        if u64_at(&bytes, 0) != Some(first)
            || u16_at(&bytes, 10).unwrap_or(0) & KINDS != OVERFLOW
            || pages != Some(needed)
        {
            return Err(self.pages.damaged(first, "it is not what belongs here"));
        }
        // The last of them must be there.
        let last = first.saturating_add(needed as u64 - 1);
        self.pages.read(last).map(drop)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.get(..2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?))
}
