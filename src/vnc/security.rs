//! Logging in at a VNC server: which of the offered ways is taken, and what proves the password. Pure: what must be random
//! is handed in.

use aes::Aes128;
use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use num_bigint::BigUint;
use zeroize::Zeroizing;

use super::Login;

/// Bytes of the server's question for a password.
pub const CHALLENGE_LEN: usize = 16;
/// The longest number in Apple's exchange of keys, in bytes; its servers use 128.
pub const MAX_KEY_LEN: usize = 512;
/// Bytes of user and password in Apple's way, a half each.
pub const LOGIN_LEN: usize = 128;
/// Random bytes that [`apple_response`] takes.
pub const RANDOM_LEN: usize = MAX_KEY_LEN + LOGIN_LEN;

/// A way to log in that this client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nobody is asked.
    None,
    /// One password for all, of which eight bytes count.
    Password,
    /// User and password of the system, as macOS does it.
    Apple,
}

/// Why no way is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// None of them is known here.
    Unknown,
    /// A user is needed.
    User,
    /// A password is.
    Password,
}

impl Security {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Security::None => 1,
            Security::Password => 2,
            Security::Apple => 30,
        }
    }
}

/// Takes the first that is possible: no question at all, the one in which a user counts if one is given, the password alone.
///
/// # Errors
/// [`NoWay`].
pub fn choose(offered: &[u8], login: &Login) -> Result<Security, NoWay> {
    let offers = |security: Security| offered.contains(&security.number());
    let possible = match login.user {
        _ if offers(Security::None) => return Ok(Security::None),
        Some(_) if offers(Security::Apple) => Security::Apple,
        _ if offers(Security::Password) => Security::Password,
        None if offers(Security::Apple) => return Err(NoWay::User),
        _ => return Err(NoWay::Unknown),
    };
    if login.password.is_some() { Ok(possible) } else { Err(NoWay::Password) }
}

/// Ways to log in as people know them: `VNC password (2), TLS (18)`.
pub fn names(offered: &[u8]) -> String {
    let name = |number: &u8| {
        let name = match number {
            1 => "none",
            2 => "VNC password",
            5 | 6 | 129 | 130 => "RealVNC's",
            16 => "Tight's",
            18 => "TLS",
            19 => "VeNCrypt",
            20 => "SASL",
            30 => "Apple's",
            33..=36 => "another of Apple's",
            _ => "unknown",
        };
        format!("{name} ({number})")
    };
    offered.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Proves the password: the question, encrypted with it. (DES, with each byte of the key back to front, as all have done it
/// since the first.)
pub fn password_response(challenge: &[u8; CHALLENGE_LEN], password: &str) -> [u8; CHALLENGE_LEN] {
    let mut key = Zeroizing::new([0; 8]);
    for (to, from) in key.iter_mut().zip(password.bytes()) {
        *to = from.reverse_bits();
    }
    let cipher = Des::new(&(*key).into());
    let mut response = *challenge;
    for block in response.as_chunks_mut::<8>().0 {
        let mut encrypted = (*block).into();
        cipher.encrypt_block(&mut encrypted);
        *block = encrypted.into();
    }
    response
}

/// What the server says of the exchange of keys.
#[derive(Debug)]
pub struct AppleOffer<'a> {
    /// What both sides raise to a power.
    pub generator: u16,
    /// The modulus of all that.
    pub prime: &'a [u8],
    /// What the server has made of its secret; as long.
    pub server_key: &'a [u8],
}

/// Proves user and password: both, encrypted with a key that only the two sides know, and this side's half of it. None when
/// the server's numbers make no sense, or what is given is too long for it.
pub fn apple_response(
    offer: &AppleOffer<'_>,
    user: &str,
    password: &str,
    random: &[u8; RANDOM_LEN],
) -> Option<Vec<u8>> {
    let length = offer.prime.len();
    let (secret, filler) = random.split_at(MAX_KEY_LEN);
    let prime = BigUint::from_bytes_be(offer.prime);
    if prime < BigUint::from(5u8) || length > MAX_KEY_LEN || offer.server_key.len() != length {
        return None;
    }
    // Not in constant time: the secret is used this once.
    let secret = BigUint::from_bytes_be(secret.get(..length)?);
    let own = BigUint::from(offer.generator).modpow(&secret, &prime);
    let shared = BigUint::from_bytes_be(offer.server_key).modpow(&secret, &prime);
    let shared = Zeroizing::new(padded(&shared, length)?);
    let cipher = Aes128::new(&md5::compute(&*shared).0.into());

    // Each ends with a zero and is filled up with what says nothing.
    let mut login = Zeroizing::new([0; LOGIN_LEN]);
    login.copy_from_slice(filler);
    let (user_half, password_half) = login.split_at_mut(LOGIN_LEN / 2);
    for (half, text) in [(user_half, user), (password_half, password)] {
        let text = text.as_bytes();
        half.get_mut(..text.len())?.copy_from_slice(text);
        *half.get_mut(text.len())? = 0;
    }
    let mut response = Vec::with_capacity(LOGIN_LEN + length);
    for block in login.as_chunks::<16>().0 {
        let mut encrypted = (*block).into();
        cipher.encrypt_block(&mut encrypted);
        response.extend_from_slice(&encrypted);
    }
    response.extend(padded(&own, length)?);
    Some(response)
}

/// A number in `length` bytes.
fn padded(number: &BigUint, length: usize) -> Option<Vec<u8>> {
    let bytes = number.to_bytes_be();
    let mut padded = vec![0; length.checked_sub(bytes.len())?];
    padded.extend(bytes);
    Some(padded)
}

#[cfg(test)]
mod tests {
    use aes::cipher::BlockCipherDecrypt;
    use proptest::prelude::*;

    use super::*;
    use crate::model::secret::Secret;

    fn login(user: Option<&str>) -> Login {
        Login { user: user.map(str::to_owned), password: Some(Secret::new("pw")) }
    }

    #[test]
    fn the_way_in_fits_what_is_offered_and_given() {
        let (with, without) = (login(Some("admin")), login(None));
        assert_eq!(choose(&[2, 1, 30], &with), Ok(Security::None));
        assert_eq!(choose(&[30, 33, 36, 2], &with), Ok(Security::Apple));
        assert_eq!(choose(&[30, 33, 36, 2], &without), Ok(Security::Password));
        assert_eq!(choose(&[2], &with), Ok(Security::Password));
        assert_eq!(choose(&[30, 33], &without), Err(NoWay::User));
        assert_eq!(choose(&[18, 19], &with), Err(NoWay::Unknown));
        assert_eq!(choose(&[], &with), Err(NoWay::Unknown));
        let nothing = |user| Login { password: None, ..login(user) };
        assert_eq!(choose(&[2, 1], &nothing(None)), Ok(Security::None));
        assert_eq!(choose(&[30, 2], &nothing(None)), Err(NoWay::Password));
        assert_eq!(choose(&[30], &nothing(Some("ann"))), Err(NoWay::Password));
        assert_eq!(choose(&[30], &nothing(None)), Err(NoWay::User));
        assert_eq!(names(&[18, 99]), "TLS (18), unknown (99)");
    }

    /// Made with another implementation of DES.
    #[test]
    fn a_password_is_proved_as_servers_expect_it() {
        let challenge: [u8; 16] = std::array::from_fn(|n| n as u8);
        let hex = |bytes: [u8; 16]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(password_response(&challenge, "letmein")), LETMEIN);
        assert_eq!(password_response(&challenge, "12345678"), password_response(&challenge, "12345678 and more"));
        assert_ne!(password_response(&challenge, "letmein"), password_response(&challenge, "letmeiN"));
    }

    const LETMEIN: &str = "4c8048fdd5f2a75f95141f3485d96b6a";

    #[test]
    fn user_and_password_reach_a_server_that_knows_its_half_of_the_key() {
        let prime = [0xff; 64]; // any modulus shows whether both sides come to the same
        let modulus = BigUint::from_bytes_be(&prime);
        let server_secret = BigUint::from(0x1234_5678_9abc_def1u64);
        let server_key = padded(&BigUint::from(2u8).modpow(&server_secret, &modulus), 64).unwrap();
        let random: [u8; RANDOM_LEN] = std::array::from_fn(|n| (n * 31 + 7) as u8);
        let offer = AppleOffer { generator: 2, prime: &prime, server_key: &server_key };
        let response = apple_response(&offer, "admin", "pass word", &random).unwrap();
        assert_eq!(response.len(), LOGIN_LEN + 64);
        let (encrypted, client_key) = response.split_at(LOGIN_LEN);
        let shared = BigUint::from_bytes_be(client_key).modpow(&server_secret, &modulus);
        let cipher = Aes128::new(&md5::compute(padded(&shared, 64).unwrap()).0.into());
        let mut login = Vec::new();
        for block in encrypted.as_chunks::<16>().0 {
            let mut plain = (*block).into();
            cipher.decrypt_block(&mut plain);
            login.extend_from_slice(&plain);
        }
        assert!(login.starts_with(b"admin\0") && login[64..].starts_with(b"pass word\0"), "{login:?}");
    }

    #[test]
    fn what_apples_way_cannot_carry_is_refused() {
        let random = [9; RANDOM_LEN];
        let respond = |prime: &[u8], key: &[u8], user: &str, password: &str| {
            apple_response(&AppleOffer { generator: 2, prime, server_key: key }, user, password, &random).is_some()
        };
        assert!(respond(&[255; 16], &[3; 16], &"u".repeat(63), &"p".repeat(63)));
        assert!(!respond(&[255; 16], &[3; 16], &"u".repeat(64), "p"));
        assert!(!respond(&[255; 16], &[3; 16], "u", &"p".repeat(64)));
        assert!(!respond(&[0; 16], &[3; 16], "u", "p"));
        assert!(!respond(&[], &[], "u", "p"));
        assert!(!respond(&[255; 513], &[3; 513], "u", "p"));
    }

    proptest! {
        #[test]
        fn no_numbers_of_a_server_do_harm(
            generator: u16,
            prime in prop::collection::vec(any::<u8>(), 0..40),
            key in prop::collection::vec(any::<u8>(), 0..40),
            user: String,
            password: String,
        ) {
            let offer = AppleOffer { generator, prime: &prime, server_key: &key };
            let _ = apple_response(&offer, &user, &password, &[5; RANDOM_LEN]);
            let _ = password_response(&[1; CHALLENGE_LEN], &password);
        }
    }
}
