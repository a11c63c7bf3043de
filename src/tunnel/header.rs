//! The messages that open a tunnel stream, and their codec. Pure; relay, worker and client share it.
//!
//! A frame is a length (two bytes, big-endian, 1 to [`MAX_FRAME`]) and that many bytes of MessagePack: a map with one
//! entry, the message's name and its fields. Fields that are not known are ignored, so releases may differ.
//!
//! ```text
//! worker → relay   worker-hello    relay → worker   admitted | refused     first stream of a worker; repeated to renew
//! client → relay   open            relay → client   opened | refused       one stream a session
//! relay → worker   attach          worker → relay   opened | refused       the other half of that session
//! relay → worker   attach-host     worker → relay   opened | refused       the same, to the worker's own machine
//! relay → worker   ping            worker → relay   pong                   is the data path alive?
//! relay → worker   locate          worker → relay   located | refused      which address has a guest?
//! relay → worker   serve           worker → relay   opened | refused       a session with the worker's own holder of execs
//! relay → worker   holders         worker → relay   held                   whose exec sessions are there?
//! relay → worker   end-execs       worker → relay   pong                   those end
//! worker → keeper  attach          keeper → worker  opened | refused       as above, to the worker's own session keeper
//! worker → keeper  forget                                                  that session shall not go on
//! ```
//! After `opened` the stream carries the session's bytes and nothing else; those of a session that can be resumed, which
//! `open` and `attach` ask for and `opened` grants, in the frames of [`resume`](super::resume). The relay hands both on and
//! needs to know nothing of it; whoever does not know of it leaves it out, and the session is one that cannot be resumed.

use serde::{Deserialize, Serialize};

use super::exec::Holder;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{AccountName, CopyId, SessionId, Timestamp, WorkerName};

/// The longest frame payload in bytes: ten times what the largest message needs; a peer that has proven nothing yet
/// makes us hold no more than this.
pub const MAX_FRAME: usize = 4096;

/// The longest reason in a refusal, in bytes; a longer one is cut.
pub const MAX_REASON: usize = 1024;

const LENGTH_BYTES: usize = 2;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frame {
    /// A worker says who it is.
    WorkerHello(WorkerHello),
    /// The worker's connection is accepted, or its renewed session is.
    Admitted {},
    /// A client asks for the stream that its ticket stands for.
    Open {
        /// What the controller gave it.
        ticket: Secret,
        /// The session shall outlive this stream.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<Resume>,
    },
    /// The relay asks a worker to connect to a guest.
    Attach {
        /// Which copy of a VM.
        copy: CopyId,
        /// TCP port in the guest.
        port: u16,
        /// As the client has asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<Resume>,
    },
    /// The stream is connected.
    Opened {
        /// What follows are the frames of a session that can be resumed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resumable: bool,
    },
    /// It is not, and why.
    Refused(ApiError),
    /// The relay asks a worker to connect to its own machine. Not known to earlier releases, which refuse it.
    AttachHost {
        /// TCP port of its loopback address.
        port: u16,
        /// As the client has asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<Resume>,
    },
    /// A worker has its session keeper end a session.
    Forget {
        /// The session's name.
        session: Secret,
    },
    /// Asks for a `pong`.
    Ping {},
    /// Answers a `ping`.
    Pong {
        /// There are exec sessions on the worker.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        holds: bool,
    },
    /// Asks which address a guest has.
    Locate {
        /// Which copy of a VM.
        copy: CopyId,
    },
    /// Answers a `locate`.
    Located {
        /// In the guest's own network, as text.
        ip: String,
    },
    /// Asks a worker to serve the exec sessions of a copy itself; what is said then, [`exec`](super::exec) has.
    Serve {
        /// Which copy of a VM.
        copy: CopyId,
        /// Who asks, as the relay knows it.
        account: AccountName,
        /// As in [`Holder`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
    },
    /// Asks a worker whose exec sessions it holds.
    Holders {
        /// Those that come behind this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Holder>,
    },
    /// Answers `holders`.
    Held {
        /// In order; as many as can be told at a time, if there are more.
        holders: Vec<Holder>,
    },
    /// Has a worker end the exec sessions of somebody and forget them.
    EndExecs(Holder),
}

/// The port, in a ticket and in `connect.open`, that stands for the exec sessions that the worker itself holds: TCP has no
/// port 0.
pub const EXEC_PORT: u16 = 0;

/// Asks for a session that outlives the stream it goes over, or for the next stream of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The protocol that its bytes are in: [`VERSION`](super::resume::VERSION).
    pub version: u16,
    /// Its name, made by the client: 256 random bits in URL-safe base64, as whoever knows it and may connect to the VM can take
    /// the session over.
    pub session: Secret,
    /// It goes on; else it begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// The longest name of a session, in bytes; those that we make have 43.
pub const MAX_SESSION_NAME: usize = 64;

/// How a worker proves itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// Its name.
    pub worker: WorkerName,
    /// The session in which it got the secret.
    pub session: SessionId,
    /// The secret.
    pub secret: Secret,
    /// The signature of the worker's key over this hello and the connection it is sent over, in URL-safe base64; see
    /// [`proof`](super::proof). None = the worker has no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

impl Frame {
    /// A refusal whose reason fits a frame.
    pub fn refused(mut error: ApiError) -> Self {
        if error.message.len() > MAX_REASON {
            error.message.truncate(error.message.floor_char_boundary(MAX_REASON));
            error.message.push('…');
        }
        Self::Refused(error)
    }

    /// The frame's bytes, length included.
    ///
    /// # Errors
    /// [`HeaderError::Length`] when it is longer than [`MAX_FRAME`].
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let mut bytes = vec![0; LENGTH_BYTES];
        rmp_serde::encode::write_named(&mut bytes, self).map_err(|error| HeaderError::Content(error.to_string()))?;
        let length = bytes.len() - LENGTH_BYTES;
        if length > MAX_FRAME {
            return Err(HeaderError::Length(length));
        }
        let prefix = u16::try_from(length).map_err(|_| HeaderError::Length(length))?.to_be_bytes();
        for (place, byte) in bytes.iter_mut().zip(prefix) {
            *place = byte;
        }
        Ok(bytes)
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The length is 0 or above the limit.
    #[error("a tunnel frame of {0} bytes; allowed are 1 to {MAX_FRAME}")]
    Length(usize),
    /// The content is not a message that we know.
    #[error("a tunnel frame that this release does not understand: {0}")]
    Content(String),
}

impl From<HeaderError> for ApiError {
    fn from(error: HeaderError) -> Self {
        ApiError::new(ErrorCode::Invalid, error.to_string())
    }
}

/// Puts a frame together from pieces of any size, and takes no byte beyond its end: what follows is the session's.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// How many bytes are missing until more can be said; never 0. Reading no more than this from a stream leaves what
    /// follows the frame in the stream.
    pub fn wants(&self) -> usize {
        match self.length() {
            None => LENGTH_BYTES.saturating_sub(self.bytes.len()),
            Some(length) => (LENGTH_BYTES + length).saturating_sub(self.bytes.len()),
        }
        .max(1)
    }

    /// Takes in bytes. Yields how many of them were used, and the frame once it is whole; the decoder is then ready
    /// for the next.
    ///
    /// # Errors
    /// The stream is not usable any further after an error.
    pub fn push(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), HeaderError> {
        let mut used = 0;
        loop {
            if let Some(length) = self.length() {
                if length == 0 || length > MAX_FRAME {
                    return Err(HeaderError::Length(length));
                }
                if self.bytes.len() == LENGTH_BYTES + length {
                    let frame = rmp_serde::from_slice(self.bytes.get(LENGTH_BYTES..).unwrap_or_default())
                        .map_err(|error| HeaderError::Content(error.to_string()))?;
                    self.bytes.clear();
                    return Ok((used, Some(frame)));
                }
            }
            let rest = input.get(used..).unwrap_or_default();
            let piece = rest.get(..self.wants().min(rest.len())).unwrap_or_default();
            if piece.is_empty() {
                return Ok((used, None));
            }
            self.bytes.extend_from_slice(piece);
            used += piece.len();
        }
    }

    /// Whether part of a frame was taken in.
    pub fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }

    fn length(&self) -> Option<usize> {
        let prefix: [u8; LENGTH_BYTES] = self.bytes.get(..LENGTH_BYTES)?.try_into().ok()?;
        Some(usize::from(u16::from_be_bytes(prefix)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::exec::MAX_HOLDERS;
    use super::*;
    use crate::model::VmUid;

    const UUID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn copy() -> CopyId {
        CopyId { uid: VmUid(UUID.parse().unwrap()), attempt: 3 }
    }

    fn hello() -> WorkerHello {
        WorkerHello {
            worker: "mini-1".parse().unwrap(),
            session: SessionId(UUID.parse().unwrap()),
            secret: Secret::new("s3"),
            proof: None,
        }
    }

    fn holder(name: &str) -> Holder {
        Holder { account: name.parse().unwrap(), since: Some(Timestamp::from_millis(7)) }
    }

    fn resume(again: bool) -> Resume {
        Resume { version: 1, session: Secret::new("s1"), again }
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            "[a-z0-9]{1,128}"
                .prop_map(|name| Frame::WorkerHello(WorkerHello { worker: name.parse().unwrap(), ..hello() })),
            Just(Frame::Admitted {}),
            "\\PC{0,200}".prop_map(|text| Frame::Open { ticket: Secret::new(text), resume: None }),
            any::<(u128, u32, u16)>().prop_map(|(uid, attempt, port)| Frame::Attach {
                copy: CopyId { uid: VmUid(uuid::Uuid::from_u128(uid)), attempt },
                port,
                resume: (port % 2 == 0).then(|| resume(port % 3 == 0)),
            }),
            any::<u16>().prop_map(|port| Frame::AttachHost { port, resume: (port % 2 == 0).then(|| resume(false)) }),
            any::<bool>().prop_map(|resumable| Frame::Opened { resumable }),
            "[a-z0-9]{1,64}".prop_map(|session| Frame::Forget { session: Secret::new(session) }),
            "\\PC{0,2000}".prop_map(|why| Frame::refused(ApiError::new(ErrorCode::Unavailable, why))),
            Just(Frame::Ping {}),
            any::<bool>().prop_map(|holds| Frame::Pong { holds }),
            Just(Frame::Locate { copy: copy() }),
            "[0-9a-f.:]{1,40}".prop_map(|ip| Frame::Located { ip }),
            "[a-z0-9]{1,128}".prop_map(|name| Frame::Serve {
                copy: copy(),
                account: name.parse().unwrap(),
                since: holder("x").since
            }),
            prop::collection::vec("[a-z0-9]{128}", 0..=MAX_HOLDERS)
                .prop_map(|names| Frame::Held { holders: names.iter().map(|name| holder(name)).collect() }),
            "[a-z0-9]{1,128}".prop_map(|name| Frame::Holders { after: Some(holder(&name)) }),
            "[a-z0-9]{1,128}".prop_map(|name| Frame::EndExecs(holder(&name))),
        ]
    }

    #[test]
    fn the_bytes_of_every_message_are_pinned() {
        let pinned: Vec<(Frame, Vec<u8>)> = vec![
            (Frame::Admitted {}, b"\x00\x0b\x81\xa8admitted\x80".to_vec()),
            (
                Frame::Open { ticket: Secret::new("abc"), resume: None },
                b"\x00\x12\x81\xa4open\x81\xa6ticket\xa3abc".to_vec(),
            ),
            (
                Frame::Open { ticket: Secret::new("abc"), resume: Some(resume(false)) },
                b"\x00\x00\x81\xa4open\x82\xa6ticket\xa3abc\xa6resume\x82\xa7version\x01\xa7session\xa2s1".to_vec(),
            ),
            (Frame::AttachHost { port: 22, resume: None }, b"\x00\x00\x81\xabattach-host\x81\xa4port\x16".to_vec()),
            (
                Frame::AttachHost { port: 22, resume: Some(resume(false)) },
                b"\x00\x00\x81\xabattach-host\x82\xa4port\x16\xa6resume\x82\xa7version\x01\xa7session\xa2s1".to_vec(),
            ),
            (Frame::Opened { resumable: false }, b"\x00\x09\x81\xa6opened\x80".to_vec()),
            (Frame::Opened { resumable: true }, b"\x00\x09\x81\xa6opened\x81\xa9resumable\xc3".to_vec()),
            (Frame::Forget { session: Secret::new("s1") }, b"\x00\x00\x81\xa6forget\x81\xa7session\xa2s1".to_vec()),
            (Frame::Ping {}, b"\x00\x07\x81\xa4ping\x80".to_vec()),
            (Frame::Pong { holds: false }, b"\x00\x07\x81\xa4pong\x80".to_vec()),
            (Frame::Pong { holds: true }, b"\x00\x00\x81\xa4pong\x81\xa5holds\xc3".to_vec()),
            (Frame::Holders { after: None }, b"\x00\x00\x81\xa7holders\x80".to_vec()),
            (Frame::Held { holders: Vec::new() }, b"\x00\x00\x81\xa4held\x81\xa7holders\x90".to_vec()),
            (
                Frame::EndExecs(holder("ci")),
                b"\x00\x00\x81\xa9end-execs\x82\xa7account\xa2ci\xa5since\xb81970-01-01T00:00:00.007Z".to_vec(),
            ),
            (
                Frame::Locate { copy: copy() },
                [b"\x00\x3f\x81\xa6locate\x81\xa4copy\x82\xa3uid\xd9\x24", UUID.as_bytes(), b"\xa7attempt\x03"]
                    .concat(),
            ),
            (Frame::Located { ip: "10.0.2.15".into() }, b"\x00\x17\x81\xa7located\x81\xa2ip\xa910.0.2.15".to_vec()),
            (
                Frame::Serve { copy: copy(), account: "ci".parse().unwrap(), since: None },
                [
                    b"\x00\x49\x81\xa5serve\x82\xa4copy\x82\xa3uid\xd9\x24",
                    UUID.as_bytes(),
                    b"\xa7attempt\x03\xa7account\xa2ci",
                ]
                .concat(),
            ),
            (
                Frame::Attach { copy: copy(), port: 5900, resume: Some(resume(true)) },
                [
                    b"\x00\x51\x81\xa6attach\x83\xa4copy\x82\xa3uid\xd9\x24",
                    UUID.as_bytes(),
                    b"\xa7attempt\x03\xa4port\xcd\x17\x0c\xa6resume\x83\xa7version\x01\xa7session\xa2s1\xa5again\xc3",
                ]
                .concat(),
            ),
            (
                Frame::Attach { copy: copy(), port: 5900, resume: None },
                [
                    b"\x00\x51\x81\xa6attach\x82\xa4copy\x82\xa3uid\xd9\x24",
                    UUID.as_bytes(),
                    b"\xa7attempt\x03\xa4port\xcd\x17\x0c",
                ]
                .concat(),
            ),
            (
                Frame::refused(ApiError::new(ErrorCode::NotFound, "no")),
                b"\x00\x27\x81\xa7refused\x82\xa4code\xa9not-found\xa7message\xa2no".to_vec(),
            ),
            (
                Frame::WorkerHello(hello()),
                [
                    b"\x00\x5a\x81\xacworker-hello\x83\xa6worker\xa6mini-1\xa7session\xd9\x24".as_slice(),
                    UUID.as_bytes(),
                    b"\xa6secret\xa2s3",
                ]
                .concat(),
            ),
            (
                Frame::WorkerHello(WorkerHello { proof: Some("sig".into()), ..hello() }),
                [
                    b"\x00\x64\x81\xacworker-hello\x84\xa6worker\xa6mini-1\xa7session\xd9\x24".as_slice(),
                    UUID.as_bytes(),
                    b"\xa6secret\xa2s3\xa5proof\xa3sig",
                ]
                .concat(),
            ),
        ];
        for (frame, mut bytes) in pinned {
            let length = u16::try_from(bytes.len() - LENGTH_BYTES).unwrap().to_be_bytes();
            bytes[..LENGTH_BYTES].copy_from_slice(&length);
            assert_eq!(frame.encode().unwrap(), bytes, "{frame:?}");
            assert_eq!(Decoder::default().push(&bytes).unwrap(), (bytes.len(), Some(frame)));
        }
    }

    #[test]
    fn fields_of_later_releases_are_ignored_and_unknown_messages_are_named() {
        let later = b"\x00\x1a\x81\xa4open\x82\xa6ticket\xa3abc\xa6future\xc3";
        let later = [&(u16::try_from(later.len() - 2).unwrap().to_be_bytes())[..], &later[2..]].concat();
        let (_, frame) = Decoder::default().push(&later).unwrap();
        assert_eq!(frame, Some(Frame::Open { ticket: Secret::new("abc"), resume: None }));
        let unknown = b"\x00\x09\x81\xa6teleport"[..].to_vec();
        assert!(
            matches!(
                Decoder::default().push(&[&[0, 9, 0x81, 0xa6][..], b"telepo\x80"].concat()),
                Err(HeaderError::Content(_))
            ),
            "{unknown:?}"
        );
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_its_content_is_waited_for() {
        for length in [0u16, 4097, u16::MAX] {
            let mut decoder = Decoder::default();
            assert_eq!(decoder.push(&length.to_be_bytes()), Err(HeaderError::Length(length.into())));
        }
        let ticket = Secret::new("x".repeat(MAX_FRAME));
        assert!(matches!(Frame::Open { ticket, resume: None }.encode(), Err(HeaderError::Length(_))));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let frame = Frame::refused(ApiError::new(ErrorCode::Internal, "ä".repeat(4000)));
        assert!(frame.encode().unwrap().len() < MAX_FRAME);
    }

    proptest! {
        #[test]
        fn frames_survive_any_split_and_the_session_bytes_after_them_stay(
            sent in prop::collection::vec(frames(), 1..5),
            tail in prop::collection::vec(any::<u8>(), 0..50),
            cuts in prop::collection::vec(1usize..40, 1..200),
        ) {
            let mut wire: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().unwrap()).collect();
            wire.extend_from_slice(&tail);
            let mut decoder = Decoder::default();
            let (mut got, mut rest) = (Vec::new(), wire.as_slice());
            let mut cuts = cuts.into_iter().cycle();
            while got.len() < sent.len() {
                let cut = cuts.next().unwrap().min(rest.len());
                let (used, frame) = decoder.push(&rest[..cut]).unwrap();
                prop_assert!(used == cut || frame.is_some());
                rest = &rest[used..];
                got.extend(frame);
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!(rest, tail.as_slice());
            prop_assert!(!decoder.is_partial());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut decoder = Decoder::default();
            let mut rest = bytes.as_slice();
            while let Ok((used, Some(_))) = decoder.push(rest) {
                rest = &rest[used..];
            }
            prop_assert!(decoder.wants() > 0 && decoder.bytes.len() <= MAX_FRAME + LENGTH_BYTES);
        }

        #[test]
        fn any_content_of_a_well_formed_length_is_decoded_or_refused(content in prop::collection::vec(any::<u8>(), 1..400)) {
            let mut bytes = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend_from_slice(&content);
            let _ = Decoder::default().push(&bytes);
        }
    }
}
