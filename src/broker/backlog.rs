//! Bytes on their way to one client: [`Batch`] while a publisher collects them, [`Backlog`] once they wait for the socket.
//! No locks and no sockets here; `outbound` has both.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::protocol::encode::CRLF;
use super::protocol::parse;

/// Pieces per write call; the kernel takes at most 1,024.
pub const MAX_PIECES: usize = 64;
/// Batches below this are copied behind the last piece instead of becoming one of their own.
const COALESCE: usize = 4 * 1024;
/// A piece does not grow beyond this by coalescing: 64 KiB stays below the allocator's threshold for mapped memory.
const MAX_PIECE: usize = 64 * 1024;

#[derive(Debug)]
enum Storage {
    Copied(Vec<u8>),
    Shared(Bytes),
}

#[derive(Debug)]
struct Piece {
    storage: Storage,
    /// Whether a frame ends with this piece, so that another kind of frame may follow.
    ends_frame: bool,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Copied(bytes) => bytes,
            Storage::Shared(bytes) => bytes,
        }
    }
}

/// Frames that one publisher has for one client and not yet handed over.
#[derive(Debug, Default)]
pub struct Batch {
    pieces: Vec<Piece>,
    len: usize,
    tail: Vec<u8>,
}

impl Batch {
    /// Where to append whole frames, or the rest of one after [`Batch::push_shared`].
    #[inline]
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Bytes held.
    #[inline]
    pub fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops message frames that `keeps` does not want, asked with the subject and the client's id of the subscription. The
    /// batch must hold nothing but messages.
    pub fn retain(&mut self, mut keeps: impl FnMut(&[u8], &[u8]) -> bool) {
        let old = std::mem::take(self);
        let segments = old.pieces.into_iter().map(|piece| piece.storage).chain([Storage::Copied(old.tail)]);
        let mut kept = true;
        for segment in segments {
            let bytes = match segment {
                Storage::Copied(bytes) => bytes,
                Storage::Shared(body) => {
                    if kept {
                        self.push_shared(body);
                    }
                    continue;
                }
            };
            // Behind a shared body comes what closes its frame.
            let closing = if self.has_open_frame() || !kept { CRLF.len() } else { 0 };
            let (close, mut rest) = bytes.split_at_checked(closing).unwrap_or_default();
            if kept {
                self.tail.extend_from_slice(close);
            }
            kept = true;
            while !rest.is_empty() {
                let Some(frame) = Frame::first_of(rest) else {
                    self.tail.extend_from_slice(rest); // not a message: not ours to judge
                    break;
                };
                kept = keeps(frame.subject, frame.sid);
                // The body of the last may be shared: then it is not here.
                let (this, next) = rest.split_at_checked(frame.len).unwrap_or((rest, &[]));
                if kept {
                    self.tail.extend_from_slice(this);
                }
                kept |= this.len() == frame.len;
                rest = next;
            }
        }
    }

    /// Whether a shared body is the last that was appended.
    fn has_open_frame(&self) -> bool {
        self.tail.is_empty() && !self.pieces.is_empty()
    }

    /// Appends `body` without copying it, in the middle of a frame whose end must follow in the tail.
    pub fn push_shared(&mut self, body: Bytes) {
        let head = std::mem::take(&mut self.tail);
        self.len += head.len() + body.len();
        self.pieces.push(Piece { storage: Storage::Copied(head), ends_frame: false });
        self.pieces.push(Piece { storage: Storage::Shared(body), ends_frame: false });
    }
}

/// A message's frame as it stands in a batch.
struct Frame<'a> {
    subject: &'a [u8],
    sid: &'a [u8],
    /// All of it, to the end that follows its body.
    len: usize,
}

impl<'a> Frame<'a> {
    fn first_of(bytes: &'a [u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let mut parts = bytes.get(..end)?.trim_ascii_end().split(|byte| *byte == b' ');
        let (_, subject, sid) = (parts.next()?, parts.next()?, parts.next()?);
        let size = parse::size(parts.next_back()?)?;
        Some(Self { subject, sid, len: end + 1 + size + CRLF.len() })
    }
}

/// What waits for the socket, the first piece perhaps partly written.
#[derive(Debug, Default)]
pub struct Backlog {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    offset: usize,
}

impl Backlog {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes over what `batch` holds and leaves it empty, with its room if that is worth keeping.
    pub fn push(&mut self, batch: &mut Batch) {
        self.pieces.extend(batch.pieces.drain(..));
        batch.len = 0;
        if batch.tail.is_empty() {
            return;
        }
        if batch.tail.len() >= COALESCE {
            return self.push_frames(std::mem::take(&mut batch.tail));
        }
        match self.pieces.back_mut() {
            Some(Piece { storage: Storage::Copied(last), ends_frame: true })
                if last.len() + batch.tail.len() <= MAX_PIECE =>
            {
                last.append(&mut batch.tail);
            }
            _ => {
                self.push_frames(batch.tail.clone());
                batch.tail.clear();
            }
        }
    }

    /// Puts whole frames at the end.
    pub fn push_frames(&mut self, frames: Vec<u8>) {
        self.pieces.push_back(Piece { storage: Storage::Copied(frames), ends_frame: true });
    }

    /// Puts what came in meanwhile behind what was taken out for writing.
    pub fn append(&mut self, later: &mut Self) {
        self.pieces.append(&mut later.pieces);
    }

    /// Fills `slices` from the front; how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_PIECES]) -> usize {
        let mut skip = self.offset;
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(piece.bytes().get(skip..).unwrap_or_default());
            skip = 0;
            count += 1;
        }
        count
    }

    /// Drops `count` bytes from the front: they are written.
    pub fn advance(&mut self, count: usize) {
        let mut done = self.offset + count;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if done < len {
                break;
            }
            done -= len;
            self.pieces.pop_front();
        }
        self.offset = done;
    }

    /// Drops everything but the rest of what is partly written, up to the end of a frame; how many bytes are left.
    pub fn cut(&mut self) -> usize {
        let keep = match self.offset {
            0 => 0,
            _ => self.pieces.iter().position(|piece| piece.ends_frame).map_or(self.pieces.len(), |at| at + 1),
        };
        self.pieces.truncate(keep);
        self.pieces.iter().map(|piece| piece.bytes().len()).sum::<usize>().saturating_sub(self.offset)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rest(backlog: &Backlog) -> Vec<u8> {
        let mut all: Vec<u8> = backlog.pieces.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
        all.drain(..backlog.offset);
        all
    }

    fn batch(frames: &[(bool, usize)], expected: &mut Vec<u8>) -> Batch {
        let mut batch = Batch::default();
        for (shared, size) in frames {
            let body = vec![(expected.len() % 251) as u8; *size];
            batch.tail().extend_from_slice(b"head");
            if *shared {
                batch.push_shared(Bytes::from(body.clone()));
            } else {
                batch.tail().extend_from_slice(&body);
            }
            batch.tail().extend_from_slice(b"\r\n");
            expected.extend([b"head", &body[..], b"\r\n"].concat());
        }
        batch
    }

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            batches in prop::collection::vec(prop::collection::vec((any::<bool>(), 1..6_000usize), 1..4), 1..8),
            writes in prop::collection::vec(1..20_000usize, 1..40),
        ) {
            let (mut backlog, mut expected, mut total) = (Backlog::default(), Vec::new(), 0);
            for frames in &batches {
                let before = expected.len();
                let mut batch = batch(frames, &mut expected);
                prop_assert_eq!(batch.len(), expected.len() - before);
                backlog.push(&mut batch);
                prop_assert!(batch.is_empty());
            }
            for write in writes {
                let mut slices = [IoSlice::new(&[]); MAX_PIECES];
                let count = backlog.slices(&mut slices);
                let offered: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let taken = write.min(offered.len());
                prop_assert_eq!(&offered[..taken], &expected[total..total + taken]);
                backlog.advance(taken);
                total += taken;
            }
            prop_assert_eq!(rest(&backlog), &expected[total..]);
        }
    }

    proptest! {
        #[test]
        fn what_is_dropped_from_a_batch_leaves_the_rest_as_it_was(
            frames in prop::collection::vec((0..4u8, any::<bool>(), any::<bool>(), 0..300usize), 0..20),
            wanted in any::<[bool; 4]>(),
        ) {
            let (mut batch, mut expected) = (Batch::default(), Vec::new());
            for (sid, shared, reply, size) in frames {
                let body = vec![b'\n'; size];
                let reply = if reply { "r " } else { "" };
                let line = format!("MSG s.{sid} {sid} {reply}{size}\r\n");
                batch.tail().extend_from_slice(line.as_bytes());
                if shared {
                    batch.push_shared(Bytes::from(body.clone()));
                } else {
                    batch.tail().extend_from_slice(&body);
                }
                batch.tail().extend_from_slice(b"\r\n");
                if wanted[usize::from(sid)] {
                    expected.extend([line.as_bytes(), &body, b"\r\n"].concat());
                }
            }
            batch.retain(|subject, sid| {
                assert_eq!(&subject[2..], sid);
                wanted[usize::from(sid[0] - b'0')]
            });
            prop_assert_eq!(batch.len(), expected.len());
            let mut backlog = Backlog::default();
            backlog.push(&mut batch);
            prop_assert_eq!(rest(&backlog), expected);
        }
    }

    #[test]
    fn a_cut_leaves_the_frame_that_has_begun() {
        let mut expected = Vec::new();
        let mut first = batch(&[(true, 10)], &mut expected);
        let length = expected.len();
        let mut backlog = Backlog::default();
        backlog.push(&mut first);
        backlog.push(&mut batch(&[(true, 10), (true, 9)], &mut expected));
        backlog.advance(5);
        // The end of the first frame was coalesced with nothing, so the cut is right behind it.
        assert_eq!(backlog.cut(), length - 5);
        assert_eq!(rest(&backlog), &expected[5..length]);
        backlog.advance(length - 5);
        assert!(backlog.is_empty());
        backlog.push(&mut batch(&[(true, 1)], &mut expected));
        assert_eq!(backlog.cut(), 0, "nothing begun, nothing left");
    }
}
