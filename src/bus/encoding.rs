//! The two forms of a request to the API: MessagePack, as this project's own programs speak, and JSON for those of others,
//! who need no library beside that of NATS then. Pure.
//!
//! A payload that begins with `{` is JSON and is answered in JSON, with the same fields. No MessagePack request begins so:
//! there it would be the number 123, and each request is a map.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message;
use crate::model::error::{ApiError, ErrorCode};

/// The form of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// MessagePack with field names.
    MessagePack,
    /// JSON, an object.
    Json,
}

impl Encoding {
    /// The form that `payload` has, which the answer to it has, too.
    pub fn of(payload: &[u8]) -> Self {
        match payload.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Encoding::Json,
            _ => Encoding::MessagePack,
        }
    }

    /// The media type of this form.
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::MessagePack => "application/msgpack",
            Encoding::Json => "application/json",
        }
    }

    /// Encodes a payload.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`]; does not happen for the types of the bus.
    pub fn encode<T: Serialize>(self, message: &T) -> Result<Vec<u8>, ApiError> {
        match self {
            Encoding::MessagePack => message::encode(message),
            Encoding::Json => serde_json::to_vec(message)
                .map_err(|error| ApiError::new(ErrorCode::Internal, format!("cannot encode a message: {error}"))),
        }
    }

    /// Decodes a payload.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] with what was expected.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, ApiError> {
        match self {
            Encoding::MessagePack => message::decode(payload),
            Encoding::Json => serde_json::from_slice(payload).map_err(|error| {
                ApiError::new(ErrorCode::Invalid, format!("the JSON payload is not what was expected: {error}"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::message::{GetInfo, ListEvents};

    #[test]
    fn json_is_known_by_its_brace() {
        for (payload, encoding) in [
            (&b"{}"[..], Encoding::Json),
            (b" \r\n\t{\"after\": 5}", Encoding::Json),
            (b"", Encoding::MessagePack),
            (b"  ", Encoding::MessagePack),
            (b"[1]", Encoding::MessagePack),
            (b"\x80", Encoding::MessagePack),
        ] {
            assert_eq!(Encoding::of(payload), encoding, "{payload:?}");
        }
        let bytes = message::encode(&GetInfo {}).unwrap();
        assert_eq!(Encoding::of(&bytes), Encoding::MessagePack);
    }

    proptest! {
        #[test]
        fn a_request_is_the_same_in_both_forms(after: u64, limit: u32) {
            let request = ListEvents { after, limit, ..ListEvents::default() };
            for encoding in [Encoding::MessagePack, Encoding::Json] {
                let bytes = encoding.encode(&request).unwrap();
                prop_assert_eq!(Encoding::of(&bytes), encoding);
                prop_assert_eq!(encoding.decode::<ListEvents>(&bytes).unwrap(), request.clone());
            }
        }

        #[test]
        fn whatever_is_sent_is_read_or_refused(payload: Vec<u8>) {
            let _ = Encoding::of(&payload).decode::<ListEvents>(&payload);
        }
    }
}
