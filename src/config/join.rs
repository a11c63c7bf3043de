//! The bootstrap token: one string that tells a machine where the controller is, how to know it, and with which secret
//! to join. Printed by `orchard get bootstrap-token`, read by `orchard worker run`. Pure.
//!
//! ```text
//! orchard-bootstrap-token-v1.<bus address, base64url>.<fingerprint, or nothing>.<join id>.<join secret>
//! ```

use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use super::address;
use crate::identity::ca::Fingerprint;
use crate::model::account::JoinId;
use crate::model::secret::Secret;

/// What every token begins with, whatever its version.
const FAMILY: &str = "orchard-bootstrap-token-";
/// The version of the format that is written here.
const VERSION: &str = "v1";
/// The longest token that is looked at: a list of bus addresses with the rest in a few hundred characters.
pub const MAX_LEN: usize = 4096;
/// The shortest join secret: 192 bits in base64. Those that are made have 43 characters; a shorter one has lost its end
/// on the way.
const MIN_SECRET_LEN: usize = 32;

/// What a bootstrap token holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapToken {
    /// Where the bus is, as [`address::normalise_bus_url`] writes it.
    pub url: String,
    /// The certificate to expect there; none = one that a public CA vouches for, or none at all with `nats://`.
    pub fingerprint: Option<Fingerprint>,
    /// The public part of the join token.
    pub id: JoinId,
    /// Its secret part.
    pub secret: Secret,
}

/// Why a text is no bootstrap token. Never holds a part of that text: most of it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapTokenError {
    /// There is nothing.
    #[error("the bootstrap token is empty; `orchard get bootstrap-token` prints one")]
    Empty,
    /// Something else altogether.
    #[error(
        "this is no bootstrap token; `orchard get bootstrap-token` prints one, which begins with {FAMILY}{VERSION}"
    )]
    Other,
    /// Of another release.
    #[error("this bootstrap token is of another release; get one of this with `orchard get bootstrap-token`")]
    Version,
    /// Too few or too many parts, or one that is damaged.
    #[error("this bootstrap token is damaged: {0}; copy it whole, or get another with `orchard get bootstrap-token`")]
    Damaged(&'static str),
}

impl BootstrapToken {
    /// The token as one string. Not `Display`: it is a secret, and should not be written somewhere in passing.
    pub fn to_text(&self) -> Secret {
        let url = BASE64URL_NOPAD.encode(self.url.as_bytes());
        let fingerprint = self.fingerprint.map(String::from).unwrap_or_default();
        Secret::new(format!("{FAMILY}{VERSION}.{url}.{fingerprint}.{}.{}", self.id, self.secret.expose()))
    }
}

impl FromStr for BootstrapToken {
    type Err = BootstrapTokenError;

    /// Reads a token; blanks and line breaks around it do not count.
    fn from_str(text: &str) -> Result<Self, BootstrapTokenError> {
        use BootstrapTokenError::Damaged;
        let text = text.trim();
        if text.is_empty() {
            return Err(BootstrapTokenError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(Damaged("it is too long"));
        }
        let versioned = text.strip_prefix(FAMILY).ok_or(BootstrapTokenError::Other)?;
        let (version, rest) = versioned.split_once('.').ok_or(Damaged("its end is missing"))?;
        if version != VERSION {
            return Err(BootstrapTokenError::Version);
        }
        let parts: Vec<&str> = rest.split('.').collect();
        let [url, fingerprint, id, secret] = parts.as_slice() else {
            return Err(Damaged(if parts.len() < 4 { "its end is missing" } else { "something follows its end" }));
        };
        let url = BASE64URL_NOPAD.decode(url.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let url = url.and_then(|url| address::normalise_bus_url(&url).ok());
        let fingerprint = match *fingerprint {
            "" => None,
            text => Some(text.parse().map_err(|_| Damaged("its fingerprint is none"))?),
        };
        let is_secret = secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !is_secret || secret.len() < MIN_SECRET_LEN {
            return Err(Damaged("its secret is cut short or changed"));
        }
        Ok(Self {
            url: url.ok_or(Damaged("the controller's address in it is none"))?,
            fingerprint,
            id: id.parse().map_err(|_| Damaged("its id is none"))?,
            secret: Secret::new(*secret),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(url: &str, pinned: bool, id: [u8; 8], secret: [u8; 32]) -> BootstrapToken {
        BootstrapToken {
            url: address::normalise_bus_url(url).unwrap(),
            fingerprint: pinned.then(|| Fingerprint::of(&secret)),
            id: JoinId::new(id),
            secret: Secret::new(BASE64URL_NOPAD.encode(&secret)),
        }
    }

    #[test]
    fn the_format_is_pinned() {
        let mut token = token("ctl", true, [1; 8], [0; 32]);
        token.fingerprint = Some(Fingerprint::of(b"abc"));
        assert_eq!(
            token.to_text().expose(),
            "orchard-bootstrap-token-v1.dGxzOi8vY3RsOjQyMjI.\
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad.0101010101010101.\
             AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        );
        token.fingerprint = None;
        assert!(token.to_text().expose().contains("MjI..0101"));
    }

    #[test]
    fn what_is_wrong_is_said_without_showing_any_of_it() {
        use BootstrapTokenError::{Damaged, Empty, Other, Version};
        let good = token("tls://ctl:4222", true, [7; 8], [9; 32]).to_text();
        let good = good.expose();
        let cut = |count: usize| &good[..good.len() - count];
        let with = |part: usize, text: &str| {
            let mut parts: Vec<&str> = good.split('.').collect();
            parts[part] = text;
            parts.join(".").parse::<BootstrapToken>()
        };
        assert_eq!(" \n".parse::<BootstrapToken>(), Err(Empty));
        assert_eq!("hunter2".parse::<BootstrapToken>(), Err(Other));
        assert_eq!(with(0, "orchard-bootstrap-token-v0"), Err(Version));
        assert_eq!(with(0, "orchard-bootstrap-token-v12"), Err(Version));
        for bad in [
            cut(12).parse(),
            cut(44).parse(),
            format!("{good}.x").parse(),
            format!("{good}{}", "x".repeat(MAX_LEN)).parse(),
            with(1, "%"),
            with(1, &BASE64URL_NOPAD.encode(b"https://ctl")),
            with(1, &BASE64URL_NOPAD.encode(&[0xff, 0xfe])),
            with(2, "abcd"),
            with(3, "abcd"),
            with(4, "not secret, this has blanks in it and more"),
        ] {
            assert!(matches!(bad, Err(Damaged(_))), "{bad:?}");
        }
        let error = with(4, "hunter2").unwrap_err();
        assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"));
        let shown = format!("{:?}", good.parse::<BootstrapToken>().unwrap());
        assert!(!shown.contains(good.rsplit('.').next().unwrap()), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            host in "[a-z][a-z0-9-]{0,20}(\\.[a-z0-9]{1,5}){0,2}",
            port in 1u16..,
            plain: bool,
            pinned: bool,
            id: [u8; 8],
            secret: [u8; 32],
        ) {
            let scheme = if plain { "nats" } else { "tls" };
            let token = token(&format!("{scheme}://{host}:{port}"), pinned, id, secret);
            let text = token.to_text();
            prop_assert!(text.expose().chars().all(|c| c.is_ascii_graphic()));
            prop_assert_eq!(format!(" {}\n", text.expose()).parse::<BootstrapToken>(), Ok(token));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,200}", tail in "[a-zA-Z0-9._-]{0,200}") {
            let _ = text.parse::<BootstrapToken>();
            let _ = format!("orchard-bootstrap-token-v1{tail}").parse::<BootstrapToken>();
        }
    }
}
