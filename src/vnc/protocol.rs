//! The messages of RFB (RFC 6143) as bytes, as far as a client needs them that only looks. Pure.

use super::picture::Size;

/// What the two sides speak; those between count as the lower one, as the RFC has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The server chooses how to log in.
    V3_3,
    /// The client chooses.
    V3_7,
    /// And is told why it is refused.
    V3_8,
}

/// Bytes of the greeting of either side.
pub const GREETING_LEN: usize = 12;
/// Bytes of what describes the screen, without its name.
pub const INIT_LEN: usize = 24;
/// Bytes of what describes a rectangle.
pub const RECTANGLE_LEN: usize = 12;
/// Bytes of a pixel as [`set_pixel_format`] orders it: blue, green, red, and one without meaning.
pub const PIXEL_LEN: usize = 4;

/// Pixels one after the other.
pub const ENCODING_RAW: i32 = 0;
/// No pixels: the screen has another size now.
pub const ENCODING_DESKTOP_SIZE: i32 = -223;

/// What the server sends once the client is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Rectangles of pixels.
    Update,
    /// Colours of a palette.
    ColourMap,
    /// A sound.
    Bell,
    /// What somebody has copied in the guest.
    CutText,
}

/// A part of the screen and how it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// Columns from the left.
    pub x: u16,
    /// Rows from the top.
    pub y: u16,
    /// How large it is; for [`ENCODING_DESKTOP_SIZE`] the whole screen.
    pub size: Size,
    /// How it is sent.
    pub encoding: i32,
}

/// Reads the server's greeting; none for what greets otherwise.
pub fn version(greeting: &[u8]) -> Option<Version> {
    let numbers = greeting.strip_prefix(b"RFB ")?.strip_suffix(b"\n")?;
    let number = |digits: &[u8]| -> Option<u16> {
        (digits.len() == 3 && digits.iter().all(u8::is_ascii_digit)).then_some(())?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    let (major, rest) = numbers.split_at_checked(3)?;
    match (number(major)?, number(rest.strip_prefix(b".")?)?) {
        (3, ..7) => Some(Version::V3_3),
        (3, 7) => Some(Version::V3_7),
        // Apple's is 3.889, others call themselves 4 and 5: all speak 3.8 when asked to.
        (3.., _) => Some(Version::V3_8),
        _ => None,
    }
}

/// The client's greeting.
pub fn greeting(version: Version) -> &'static [u8; GREETING_LEN] {
    match version {
        Version::V3_3 => b"RFB 003.003\n",
        Version::V3_7 => b"RFB 003.007\n",
        Version::V3_8 => b"RFB 003.008\n",
    }
}

/// Says that others may look at the screen, too.
pub fn client_init() -> [u8; 1] {
    [1]
}

/// The screen's size, and how many bytes its name has, which follows.
pub fn server_init(bytes: &[u8]) -> Option<(Size, u32)> {
    Some((Size { width: u16_at(bytes, 0)?, height: u16_at(bytes, 2)? }, u32_at(bytes, 20)?))
}

/// Asks for pixels of [`PIXEL_LEN`] bytes.
pub fn set_pixel_format() -> [u8; 20] {
    const MESSAGE: [u8; 4] = [0, 0, 0, 0];
    let format = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
    let mut bytes = [0; 20];
    for (to, from) in bytes.iter_mut().zip(MESSAGE.into_iter().chain(format)) {
        *to = from;
    }
    bytes
}

/// Says how pixels may be sent.
pub fn set_encodings(encodings: &[i32]) -> Vec<u8> {
    let count = u16::try_from(encodings.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![2, 0];
    bytes.extend(count.to_be_bytes());
    bytes.extend(encodings.iter().take(count.into()).flat_map(|encoding| encoding.to_be_bytes()));
    bytes
}

/// Asks for the whole screen, or for what of it has changed or is still to be sent.
pub fn request_update(size: Size, only_changes: bool) -> [u8; 10] {
    let ([width, width_low], [height, height_low]) = (size.width.to_be_bytes(), size.height.to_be_bytes());
    [3, only_changes.into(), 0, 0, 0, 0, width, width_low, height, height_low]
}

/// What a message begins with; none for what no server may send to this client.
pub fn message(kind: u8) -> Option<Message> {
    match kind {
        0 => Some(Message::Update),
        1 => Some(Message::ColourMap),
        2 => Some(Message::Bell),
        3 => Some(Message::CutText),
        _ => None,
    }
}

/// Reads what describes a rectangle.
pub fn rectangle(bytes: &[u8]) -> Option<Rectangle> {
    Some(Rectangle {
        x: u16_at(bytes, 0)?,
        y: u16_at(bytes, 2)?,
        size: Size { width: u16_at(bytes, 4)?, height: u16_at(bytes, 6)? },
        encoding: u32_at(bytes, 8)?.cast_signed(),
    })
}

/// The number in two bytes at `place`.
pub fn u16_at(bytes: &[u8], place: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(place..)?.first_chunk()?))
}

/// The number in four bytes at `place`.
pub fn u32_at(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(place..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_read_as_the_rfc_has_it() {
        for (greeting, expected) in [
            (&b"RFB 003.003\n"[..], Some(Version::V3_3)),
            (b"RFB 003.005\n", Some(Version::V3_3)),
            (b"RFB 003.007\n", Some(Version::V3_7)),
            (b"RFB 003.008\n", Some(Version::V3_8)),
            (b"RFB 003.889\n", Some(Version::V3_8)),
            (b"RFB 005.000\n", Some(Version::V3_8)),
            (b"RFB 002.000\n", None),
            (b"RFB 003.+08\n", None),
            (b"RFB 003.008", None),
            (b"SSH-2.0-Open", None),
            (b"", None),
        ] {
            assert_eq!(version(greeting), expected, "{greeting:?}");
        }
        for known in [Version::V3_3, Version::V3_7, Version::V3_8] {
            assert_eq!(version(greeting(known)), Some(known));
        }
    }

    #[test]
    fn what_is_sent_is_what_the_rfc_shows() {
        let size = Size { width: 0x0102, height: 0x0304 };
        assert_eq!(request_update(size, false), [3, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(request_update(size, true), [3, 1, 0, 0, 0, 0, 1, 2, 3, 4]);
        let encodings = set_encodings(&[ENCODING_RAW, ENCODING_DESKTOP_SIZE]);
        assert_eq!(encodings, [2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21]);
        let format = [0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        assert_eq!(set_pixel_format(), format);
    }

    proptest! {
        #[test]
        fn rectangles_are_read(x: u16, y: u16, width: u16, height: u16, encoding: i32) {
            let numbers = [x, y, width, height].into_iter().flat_map(u16::to_be_bytes);
            let bytes: Vec<u8> = numbers.chain(encoding.to_be_bytes()).collect();
            let read = Rectangle { x, y, size: Size { width, height }, encoding };
            prop_assert_eq!(rectangle(&bytes), Some(read));
            prop_assert_eq!(rectangle(&bytes[1..]), None);
        }
    }
}
