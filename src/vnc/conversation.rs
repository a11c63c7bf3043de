//! What a client says to a VNC server to get one picture, as a state machine without socket and clock. Pure.
//!
//! Whoever drives it sends what [`Conversation::to_send`] yields, reads exactly [`Conversation::needs`] bytes and hands them to
//! [`Conversation::take`], until no more are needed. Whatever a server sends, no more than [`MAX_NEED`] bytes are asked for at a
//! time and no picture larger than [`MAX_BYTES`](super::picture::MAX_BYTES) is held.

use super::Login;
use super::picture::{MAX_SIDE, Picture, Size};
use super::protocol::{self, ENCODING_DESKTOP_SIZE, ENCODING_RAW, Message, PIXEL_LEN, Rectangle, Version};
use super::security::{self, AppleOffer, CHALLENGE_LEN, NoWay, RANDOM_LEN, Security};

/// The most bytes asked for at a time: one row of the widest picture.
pub const MAX_NEED: usize = MAX_SIDE as usize * PIXEL_LEN;
/// What is read of a server's reason for a refusal; the rest tells nobody more.
const MAX_REASON: u32 = 1_000;
/// How often a screen may change its size before its picture is there: guests do that a few times while they boot.
const MAX_RESIZES: u32 = 20;

/// Why there will be no picture, however often it is tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Something else listens there.
    #[error("what answers is no VNC server: it began with {0:?}")]
    NotVnc(String),
    /// Nobody is let in.
    #[error("the VNC server lets nobody in: {0}")]
    Closed(String),
    /// Its ways to log in are all unknown.
    #[error(
        "the VNC server offers to log in by {0}, and this client knows none (1), VNC password (2) and Apple's (30); \
         switch one of these on in the guest"
    )]
    NoWay(String),
    /// It wants a user.
    #[error("the VNC server asks for a user")]
    UserNeeded,
    /// It wants a password, and none was given.
    #[error("the VNC server asks for a password")]
    PasswordNeeded,
    /// It lets others in.
    #[error("the VNC server refused {who}: {reason}")]
    Refused {
        /// Who was to be let in.
        who: String,
        /// What the server says to it.
        reason: String,
    },
    /// Its screen is larger than a picture may be, or has no pixels.
    #[error("the VNC server has a screen of {width} x {height} pixels, of which no picture is taken")]
    Screen {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// It does not do as the RFC says.
    #[error("the VNC server broke the protocol: {0}")]
    Broken(&'static str),
}

/// How far it has come, for those who are told that it did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was heard of the server.
    Greeting,
    /// Being let in.
    Login,
    /// The screen's pixels.
    Screen,
}

/// A conversation with one server.
#[derive(Debug)]
pub struct Conversation {
    login: Login,
    random: Box<[u8; RANDOM_LEN]>,
    state: State,
    outgoing: Vec<u8>,
    picture: Option<Picture>,
    resizes: u32,
}

/// What is read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// The way to log in, as an old server orders.
    Order,
    WayCount(Version),
    Ways(Version, u8),
    Challenge(Version),
    AppleOffer(Version),
    AppleKeys {
        version: Version,
        generator: u16,
        length: u16,
    },
    Verdict(Version, Security),
    /// How long the reason is why nobody is let in, or else this client by its way.
    ReasonLength(Option<Security>),
    Reason(Option<Security>, u32),
    Init,
    Message,
    UpdateHead,
    ColourMapHead,
    CutTextHead,
    /// So many bytes that do not matter.
    Skip(u32),
    /// Rectangles that are left of an update.
    Rectangle(u16),
    /// A row of a rectangle's pixels; behind that so many rectangles.
    Row {
        rectangle: Rectangle,
        row: u16,
        left: u16,
    },
    Done,
}

impl Conversation {
    /// Begins one. `random` must be such that nobody can guess it.
    pub fn new(login: Login, random: [u8; RANDOM_LEN]) -> Self {
        Self { login, random: random.into(), state: State::Greeting, outgoing: Vec::new(), picture: None, resizes: 0 }
    }

    /// How many bytes to read next; 0 when the picture is whole.
    pub fn needs(&self) -> usize {
        match self.state {
            State::Greeting => protocol::GREETING_LEN,
            State::Order | State::AppleOffer(_) | State::Verdict(..) | State::ReasonLength(_) => 4,
            State::WayCount(_) | State::Message => 1,
            State::Ways(_, count) => count.into(),
            State::Challenge(_) => CHALLENGE_LEN,
            State::AppleKeys { length, .. } => usize::from(length) * 2,
            State::Reason(_, length) => length as usize,
            State::Init => protocol::INIT_LEN,
            State::UpdateHead => 3,
            State::ColourMapHead => 5,
            State::CutTextHead => 7,
            State::Skip(left) => (left as usize).min(MAX_NEED),
            State::Rectangle(_) => protocol::RECTANGLE_LEN,
            State::Row { rectangle, .. } => usize::from(rectangle.size.width) * PIXEL_LEN,
            State::Done => 0,
        }
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Greeting => Stage::Greeting,
            _ if self.picture.is_some() => Stage::Screen,
            _ => Stage::Login,
        }
    }

    /// What to send before reading; empty for nothing.
    pub fn to_send(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// The picture, once it is whole.
    pub fn into_picture(self) -> Option<Picture> {
        self.picture.filter(|_| self.state == State::Done)
    }

    /// Takes what was read: exactly as much as is needed.
    ///
    /// # Errors
    /// When there will be no picture; the conversation is of no use then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        const SHORT: ProtocolError = ProtocolError::Broken("a message is too short");
        let number = |place| protocol::u32_at(bytes, place).ok_or(SHORT);
        self.state = match self.state {
            State::Greeting => self.greet(bytes)?,
            State::Order => match number(0)? {
                0 => State::ReasonLength(None),
                order => self.log_in(Version::V3_3, &[u8::try_from(order).unwrap_or(0)])?,
            },
            State::WayCount(version) => match bytes.first().ok_or(SHORT)? {
                0 => State::ReasonLength(None),
                count => State::Ways(version, *count),
            },
            State::Ways(version, _) => self.log_in(version, bytes)?,
            State::Challenge(version) => {
                let challenge = bytes.first_chunk().ok_or(SHORT)?;
                self.send(&security::password_response(challenge, self.password()));
                State::Verdict(version, Security::Password)
            }
            State::AppleOffer(version) => {
                let numbers = protocol::u16_at(bytes, 0).zip(protocol::u16_at(bytes, 2));
                let (generator, length) = numbers.ok_or(SHORT)?;
                if !(1..=security::MAX_KEY_LEN).contains(&length.into()) {
                    return Err(UNUSABLE_KEYS);
                }
                State::AppleKeys { version, generator, length }
            }
            State::AppleKeys { version, generator, length } => {
                let (prime, server_key) = bytes.split_at_checked(length.into()).ok_or(SHORT)?;
                self.prove_user(&AppleOffer { generator, prime, server_key })?;
                State::Verdict(version, Security::Apple)
            }
            State::Verdict(version, security) => match (number(0)?, version) {
                (0, _) => self.enter(),
                (_, Version::V3_8) => State::ReasonLength(Some(security)),
                _ => return Err(self.refused(Some(security), b"")),
            },
            State::ReasonLength(security) => match number(0)? {
                0 => return Err(self.refused(security, b"")),
                length => State::Reason(security, length.min(MAX_REASON)),
            },
            State::Reason(security, _) => return Err(self.refused(security, bytes)),
            State::Init => {
                let (size, name) = protocol::server_init(bytes).ok_or(SHORT)?;
                self.send(&protocol::set_pixel_format());
                self.send(&protocol::set_encodings(&[ENCODING_RAW, ENCODING_DESKTOP_SIZE]));
                self.look_at(size)?;
                skip(name)
            }
            State::Message => match protocol::message(*bytes.first().ok_or(SHORT)?) {
                Some(Message::Update) => State::UpdateHead,
                Some(Message::ColourMap) => State::ColourMapHead,
                Some(Message::CutText) => State::CutTextHead,
                Some(Message::Bell) => State::Message,
                None => return Err(ProtocolError::Broken("it sent a message that it was not asked for")),
            },
            State::UpdateHead => self.behind_rectangle(protocol::u16_at(bytes, 1).ok_or(SHORT)?),
            State::ColourMapHead => skip(u32::from(protocol::u16_at(bytes, 3).ok_or(SHORT)?) * 6),
            State::CutTextHead => skip(number(3)?),
            State::Skip(left) => skip(left.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX))),
            State::Rectangle(left) => {
                self.begin_rectangle(protocol::rectangle(bytes).ok_or(SHORT)?, left.saturating_sub(1))?
            }
            State::Row { rectangle, row, left } => {
                if let Some(picture) = &mut self.picture {
                    picture.draw(rectangle.x, rectangle.y.saturating_add(row), bytes);
                }
                match row + 1 < rectangle.size.height {
                    true => State::Row { rectangle, row: row + 1, left },
                    false => self.behind_rectangle(left),
                }
            }
            State::Done => State::Done,
        };
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    fn greet(&mut self, greeting: &[u8]) -> Result<State, ProtocolError> {
        let unknown = || ProtocolError::NotVnc(String::from_utf8_lossy(greeting).into_owned());
        let version = protocol::version(greeting).ok_or_else(unknown)?;
        self.send(protocol::greeting(version));
        Ok(match version {
            Version::V3_3 => State::Order,
            Version::V3_7 | Version::V3_8 => State::WayCount(version),
        })
    }

    fn log_in(&mut self, version: Version, offered: &[u8]) -> Result<State, ProtocolError> {
        let security = security::choose(offered, &self.login).map_err(|why| match why {
            NoWay::Unknown => ProtocolError::NoWay(security::names(offered)),
            NoWay::User => ProtocolError::UserNeeded,
            NoWay::Password => ProtocolError::PasswordNeeded,
        })?;
        if version > Version::V3_3 {
            self.send(&[security.number()]);
        }
        Ok(match security {
            Security::None if version < Version::V3_8 => self.enter(),
            Security::None => State::Verdict(version, security),
            Security::Password => State::Challenge(version),
            Security::Apple => State::AppleOffer(version),
        })
    }

    fn prove_user(&mut self, offer: &AppleOffer<'_>) -> Result<(), ProtocolError> {
        let user = self.login.user.as_deref().unwrap_or_default();
        let response = security::apple_response(offer, user, self.password(), &self.random);
        let response = response.ok_or(UNUSABLE_KEYS)?;
        self.send(&response);
        Ok(())
    }

    fn enter(&mut self) -> State {
        self.send(&protocol::client_init());
        State::Init
    }

    fn refused(&self, security: Option<Security>, reason: &[u8]) -> ProtocolError {
        let reason = match String::from_utf8_lossy(reason).trim() {
            "" => "it does not say why".to_owned(),
            reason => reason.to_owned(),
        };
        let who = match (security, &self.login.user) {
            (None, _) => return ProtocolError::Closed(reason),
            (Some(Security::None), _) => "this client".to_owned(),
            (Some(Security::Apple), Some(user)) => format!("user {user:?} with the given password"),
            (Some(_), _) => "the given password".to_owned(),
        };
        ProtocolError::Refused { who, reason }
    }

    /// No way in that takes one is chosen without it.
    fn password(&self) -> &str {
        self.login.password.as_ref().map_or("", |password| password.expose())
    }

    /// Begins a picture of a screen of this size.
    fn look_at(&mut self, size: Size) -> Result<(), ProtocolError> {
        let Size { width, height } = size;
        // The one before goes first: there is never room for two.
        self.picture = None;
        self.picture = Some(Picture::blank(size).ok_or(ProtocolError::Screen { width, height })?);
        self.send(&protocol::request_update(size, false));
        Ok(())
    }

    fn begin_rectangle(&mut self, rectangle: Rectangle, left: u16) -> Result<State, ProtocolError> {
        let Rectangle { x, y, size, encoding } = rectangle;
        let screen = self.picture.as_ref().map(Picture::size).ok_or(ProtocolError::Broken("there is no screen yet"))?;
        match encoding {
            ENCODING_DESKTOP_SIZE if self.resizes == MAX_RESIZES => {
                Err(ProtocolError::Broken("its screen has another size all the time"))
            }
            ENCODING_DESKTOP_SIZE => {
                self.resizes += 1;
                self.look_at(size)?;
                Ok(self.behind_rectangle(left))
            }
            ENCODING_RAW => {
                let fits = |from: u16, length: u16, side: u16| u32::from(from) + u32::from(length) <= u32::from(side);
                if !fits(x, size.width, screen.width) || !fits(y, size.height, screen.height) {
                    return Err(ProtocolError::Broken("it sent pixels beside its screen"));
                }
                Ok(match size.width == 0 || size.height == 0 {
                    true => self.behind_rectangle(left),
                    false => State::Row { rectangle, row: 0, left },
                })
            }
            _ => Err(ProtocolError::Broken("it sent pixels in an encoding that it was not asked for")),
        }
    }

    /// What comes behind a rectangle when so many are left. A server may send the screen in several updates, each of which
    /// is to be asked for.
    fn behind_rectangle(&mut self, left: u16) -> State {
        let size = match &self.picture {
            _ if left > 0 => return State::Rectangle(left),
            Some(picture) if picture.is_whole() => return State::Done,
            Some(picture) => picture.size(),
            None => return State::Message,
        };
        self.send(&protocol::request_update(size, true));
        State::Message
    }
}

const UNUSABLE_KEYS: ProtocolError = ProtocolError::Broken("its keys for the login are of no use");

fn skip(bytes: u32) -> State {
    if bytes == 0 { State::Message } else { State::Skip(bytes) }
}

#[cfg(test)]
mod tests;
