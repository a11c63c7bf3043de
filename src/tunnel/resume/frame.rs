//! The frames that the two ends of a resumable session exchange, and their bytes. Pure; only [`super::end`] uses them.
//!
//! | kind | fields, all big-endian | meaning |
//! |---|---|---|
//! | 1 hello | received u64, window u32 | first on every attachment: send from here on, and keep no more than this under way |
//! | 2 data | offset u64, length u16, bytes | a piece of the stream, beginning at that offset |
//! | 3 ack | delivered u64 | everything below was handed on and need not be kept |
//! | 4 finish | offset u64 | the stream ends there; this counts as one more position |
//! | 5 reset | reason u32 | the session is over |

use bytes::{Buf, BufMut, BytesMut};

use super::Violation;
use crate::tunnel::reason::Reason;

/// The most bytes in one data frame: a few packets, so that an acknowledgement never waits long behind one.
pub(super) const MAX_DATA: usize = 16 << 10;

/// The longest frame: data with its header.
pub(super) const MAX_FRAME: usize = 1 + 8 + 2 + MAX_DATA;

const HELLO: u8 = 1;
const DATA: u8 = 2;
const ACK: u8 = 3;
const FINISH: u8 = 4;
const RESET: u8 = 5;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Hello { received: u64, window: u32 },
    Data { offset: u64, bytes: BytesMut },
    Ack { delivered: u64 },
    Finish { offset: u64 },
    Reset(Reason),
}

impl Frame {
    /// Appends the frame's bytes.
    pub(super) fn put(&self, wire: &mut BytesMut) {
        match self {
            Frame::Hello { received, window } => {
                wire.put_u8(HELLO);
                wire.put_u64(*received);
                wire.put_u32(*window);
            }
            Frame::Data { offset, bytes } => put_data(wire, *offset, [bytes, &[]]),
            Frame::Ack { delivered } => {
                wire.put_u8(ACK);
                wire.put_u64(*delivered);
            }
            Frame::Finish { offset } => {
                wire.put_u8(FINISH);
                wire.put_u64(*offset);
            }
            Frame::Reset(reason) => {
                wire.put_u8(RESET);
                wire.put_u32(reason.number());
            }
        }
    }

    /// Takes the first frame out of `wire`; `None` while it is not all there, and nothing is taken then.
    ///
    /// # Errors
    /// [`Violation`] when what is there begins no frame.
    pub(super) fn take(wire: &mut BytesMut) -> Result<Option<Frame>, Violation> {
        let mut rest: &[u8] = wire;
        let Some(frame) = read(&mut rest)? else { return Ok(None) };
        let (header, data) = match frame {
            Read::Whole(frame) => (wire.len() - rest.len(), Ok(frame)),
            Read::Data { offset, length } => (wire.len() - rest.len(), Err((offset, length))),
        };
        match data {
            Ok(frame) => {
                wire.advance(header);
                Ok(Some(frame))
            }
            Err((_, length)) if rest.len() < length => Ok(None),
            Err((offset, length)) => {
                wire.advance(header);
                Ok(Some(Frame::Data { offset, bytes: wire.split_to(length) }))
            }
        }
    }
}

/// Appends a data frame whose bytes lie in two pieces, of at most [`MAX_DATA`] together.
pub(super) fn put_data(wire: &mut BytesMut, offset: u64, pieces: [&[u8]; 2]) {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    wire.put_u8(DATA);
    wire.put_u64(offset);
    wire.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    pieces.iter().for_each(|piece| wire.put_slice(piece));
}

enum Read {
    Whole(Frame),
    /// What follows are its bytes.
    Data {
        offset: u64,
        length: usize,
    },
}

/// Reads a frame up to its data.
fn read(from: &mut &[u8]) -> Result<Option<Read>, Violation> {
    let Ok(kind) = from.try_get_u8() else { return Ok(None) };
    let whole = match kind {
        HELLO => match (from.try_get_u64(), from.try_get_u32()) {
            (Ok(received), Ok(window)) => Frame::Hello { received, window },
            _ => return Ok(None),
        },
        DATA => match (from.try_get_u64(), from.try_get_u16()) {
            (Ok(offset), Ok(length)) if (1..=MAX_DATA).contains(&length.into()) => {
                return Ok(Some(Read::Data { offset, length: length.into() }));
            }
            (Ok(_), Ok(length)) => return Err(Violation::Length(length)),
            _ => return Ok(None),
        },
        ACK => match from.try_get_u64() {
            Ok(delivered) => Frame::Ack { delivered },
            Err(_) => return Ok(None),
        },
        FINISH => match from.try_get_u64() {
            Ok(offset) => Frame::Finish { offset },
            Err(_) => return Ok(None),
        },
        RESET => match from.try_get_u32() {
            Ok(number) => Frame::Reset(Reason::from_number(number)),
            Err(_) => return Ok(None),
        },
        unknown => return Err(Violation::Unknown(unknown)),
    };
    Ok(Some(Read::Whole(whole)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            any::<(u64, u32)>().prop_map(|(received, window)| Frame::Hello { received, window }),
            (any::<u64>(), prop::collection::vec(any::<u8>(), 1..100))
                .prop_map(|(offset, bytes)| Frame::Data { offset, bytes: bytes.as_slice().into() }),
            any::<u64>().prop_map(|delivered| Frame::Ack { delivered }),
            any::<u64>().prop_map(|offset| Frame::Finish { offset }),
            Just(Frame::Reset(Reason::GuestReset)),
        ]
    }

    #[test]
    fn the_bytes_are_pinned() {
        let pinned: [(Frame, &[u8]); 5] = [
            (Frame::Hello { received: 7, window: 1 << 20 }, b"\x01\0\0\0\0\0\0\0\x07\0\x10\0\0"),
            (Frame::Data { offset: 258, bytes: b"hi"[..].into() }, b"\x02\0\0\0\0\0\0\x01\x02\0\x02hi"),
            (Frame::Ack { delivered: 9 }, b"\x03\0\0\0\0\0\0\0\x09"),
            (Frame::Finish { offset: 9 }, b"\x04\0\0\0\0\0\0\0\x09"),
            (Frame::Reset(Reason::GuestReset), b"\x05\0\0\0\x02"),
        ];
        for (frame, bytes) in pinned {
            let mut wire = BytesMut::new();
            frame.put(&mut wire);
            assert_eq!(&wire[..], bytes, "{frame:?}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, why) in [
            (&b"\x02\0\0\0\0\0\0\0\0\0\0"[..], Violation::Length(0)),
            (&b"\x02\0\0\0\0\0\0\0\0\x40\x01"[..], Violation::Length(0x4001)),
            (&b"\x06"[..], Violation::Unknown(6)),
            (&b"S"[..], Violation::Unknown(b'S')),
        ] {
            assert_eq!(Frame::take(&mut bytes.into()), Err(why));
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            sent in prop::collection::vec(frames(), 1..10),
            cuts in prop::collection::vec(1usize..40, 1..200),
        ) {
            let mut wire = BytesMut::new();
            sent.iter().for_each(|frame| frame.put(&mut wire));
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while !wire.is_empty() {
                buffer.extend_from_slice(&wire.split_to(cuts.next().unwrap().min(wire.len())));
                while let Some(frame) = Frame::take(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::take(&mut wire) {}
        }
    }
}
