//! What a session said, in numbered records on the worker's disk: bounded, and what had to go is known by its numbers.
//!
//! Two files that nothing names any more, so that none is left over whatever becomes of the worker. The older one goes as a
//! whole when the newer one is full: between half of [`HISTORY`] and all of it is kept. A record in a file is its stream (one
//! byte), its length (four, big-endian) and its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// How much of what a session said is kept, in bytes: the end of a long build with all its warnings.
pub(super) const HISTORY: u64 = 16 << 20;

const HEAD: usize = 5;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Out {
    Stdout,
    Stderr,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) stream: Out,
    pub(super) data: Bytes,
}

#[derive(Debug)]
struct Part {
    file: Arc<File>,
    /// Number of its first record.
    first: u64,
    length: u64,
}

/// The records that are kept.
#[derive(Debug)]
pub(super) struct History {
    folder: PathBuf,
    older: Option<Part>,
    newer: Part,
    next: u64,
    part: u64,
}

/// Where somebody reads.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// The record that is read next.
    pub(super) number: u64,
    /// Where it is, if the part that it is in is known: that part's first number, and the place in it.
    place: Option<(u64, u64)>,
}

impl Cursor {
    /// Before the record `number`.
    pub(super) fn at(number: u64) -> Self {
        Self { number, place: None }
    }
}

impl History {
    /// An empty one of `bytes` in `folder`, which is there.
    pub(super) fn new(folder: &Path, bytes: u64) -> io::Result<Self> {
        let newer = Part { file: nameless(folder)?, first: 1, length: 0 };
        Ok(Self { folder: folder.to_owned(), older: None, newer, next: 1, part: bytes / 2 })
    }

    /// The number of the first record that is kept.
    pub(super) fn first(&self) -> u64 {
        self.older.as_ref().map_or(self.newer.first, |older| older.first)
    }

    /// The number of the first record that would be kept if one were added now; higher than [`History::first`] when some would
    /// go for it.
    pub(super) fn first_after_adding(&self) -> u64 {
        match self.newer.length < self.part {
            true => self.first(),
            false => self.newer.first,
        }
    }

    /// Adds a record, and yields its number.
    pub(super) fn add(&mut self, stream: Out, data: &[u8]) -> io::Result<u64> {
        if self.newer.length >= self.part {
            let fresh = Part { file: nameless(&self.folder)?, first: self.next, length: 0 };
            self.older = Some(std::mem::replace(&mut self.newer, fresh));
        }
        let length = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(HEAD + data.len());
        bytes.push(match stream {
            Out::Stdout => 1,
            Out::Stderr => 2,
        });
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(data);
        // Only counts once it is written whole.
        self.newer.file.write_all_at(&bytes, self.newer.length)?;
        self.newer.length += u64::try_from(bytes.len()).unwrap_or_default();
        self.next += 1;
        Ok(self.next - 1)
    }

    /// The records from `cursor` on, of about `most` bytes together, and moves it behind them; one whose records are gone
    /// begins at the first that is kept.
    pub(super) fn read(&self, cursor: &mut Cursor, most: usize) -> io::Result<Vec<Record>> {
        let (mut records, mut size) = (Vec::new(), 0);
        cursor.number = cursor.number.max(self.first());
        while cursor.number < self.next && size < most {
            let part = match &self.older {
                Some(older) if cursor.number < self.newer.first => older,
                _ => &self.newer,
            };
            let (mut number, mut place) = match cursor.place {
                Some((first, place)) if first == part.first => (cursor.number, place),
                _ => (part.first, 0),
            };
            // Its place is not known yet: from the beginning of the part.
            while number < cursor.number {
                place += HEAD_U64 + u64::from(head(&part.file, place)?.1);
                number += 1;
            }
            let (stream, length) = head(&part.file, place)?;
            let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
            part.file.read_exact_at(&mut data, place + HEAD_U64)?;
            size += data.len().max(1);
            records.push(Record { number, stream, data: data.into() });
            cursor.number = number + 1;
            cursor.place = Some((part.first, place + HEAD_U64 + u64::from(length)));
        }
        Ok(records)
    }
}

const HEAD_U64: u64 = HEAD as u64;

fn head(file: &File, place: u64) -> io::Result<(Out, u32)> {
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, place)?;
    let [stream, a, b, c, d] = head;
    let stream = match stream {
        1 => Out::Stdout,
        2 => Out::Stderr,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((stream, u32::from_be_bytes([a, b, c, d])))
}

/// A file that goes with its last user.
fn nameless(folder: &Path) -> io::Result<Arc<File>> {
    let path = folder.join(format!("{}.history", uuid::Uuid::new_v4()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(Arc::new(file))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_what_went_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::new(dir.path(), 1000).unwrap();
        for n in 1..=100u64 {
            assert_eq!(history.add(Out::Stdout, &[n as u8; 95]).unwrap(), n);
        }
        assert_eq!((history.first(), history.next), (91, 101));
        let mut cursor = Cursor::at(1);
        let records = history.read(&mut cursor, usize::MAX).unwrap();
        assert_eq!(records.first().unwrap().number, 91);
        assert_eq!(records.last().unwrap().data, vec![100; 95]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing would be left over");
    }

    proptest! {
        #[test]
        fn a_reader_gets_every_record_that_is_kept_in_order(
            sizes in prop::collection::vec((0usize..300, any::<bool>()), 1..80),
            most in 1usize..400,
            from in 0u64..90,
            every in 1usize..20,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut history = History::new(dir.path(), 2000).unwrap();
            let mut cursor = Cursor::at(from);
            let mut all = Vec::new();
            let mut got = Vec::new();
            for (index, (size, err)) in sizes.into_iter().enumerate() {
                let stream = if err { Out::Stderr } else { Out::Stdout };
                let number = history.add(stream, &vec![index as u8; size]).unwrap();
                all.push(Record { number, stream, data: vec![index as u8; size].into() });
                if index % every == 0 {
                    got.extend(history.read(&mut cursor, most).unwrap());
                }
            }
            while cursor.number < history.next {
                got.extend(history.read(&mut cursor, most).unwrap());
            }
            prop_assert!(got.is_sorted_by(|a, b| a.number < b.number));
            for record in &got {
                prop_assert_eq!(record, &all[usize::try_from(record.number).unwrap() - 1]);
                prop_assert!(record.number >= from);
            }
            let kept: Vec<u64> = (history.first().max(from)..history.next).collect();
            let tail: Vec<u64> = got.iter().map(|r| r.number).filter(|n| kept.contains(n)).collect();
            prop_assert_eq!(tail, kept);
        }
    }
}
