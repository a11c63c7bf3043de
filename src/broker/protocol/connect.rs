//! What a client says of itself in CONNECT. Pure; called by the session.
//!
//! Read as nats-server reads it: names of fields in any case, `null` for absent, the last of two, unknown ones ignored, and
//! a value of the wrong type ends the connection. What a second CONNECT does not name stays as it was.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::Fault;

/// What a client says of itself in CONNECT. Absent booleans default as in nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Whether each accepted operation is answered with `+OK`.
    pub verbose: bool,
    /// Whether published subjects are checked.
    pub pedantic: bool,
    /// Whether the client gets its own messages.
    pub echo: bool,
    /// Whether the client understands headers.
    pub headers: bool,
    /// Whether requests that nobody hears are answered with status 503.
    pub no_responders: bool,
    /// Client protocol: from 1 on, INFO may come at any time.
    pub protocol: i64,
    /// Whether the client insists on TLS.
    pub tls_required: bool,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub pass: Option<String>,
    /// Token.
    pub auth_token: Option<String>,
    /// Public key of the user.
    pub nkey: Option<String>,
    /// Signature of the nonce.
    pub sig: Option<String>,
    /// Signed user claims.
    pub jwt: Option<String>,
    /// Name of the connection.
    pub name: Option<String>,
    /// Language of the client library.
    pub lang: Option<String>,
    /// Version of the client library.
    pub version: Option<String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            tls_required: false,
            user: None,
            pass: None,
            auth_token: None,
            nkey: None,
            sig: None,
            jwt: None,
            name: None,
            lang: None,
            version: None,
        }
    }
}

/// The highest client protocol: INFO may come at any time.
const HIGHEST_PROTOCOL: i64 = 1;

impl ConnectOptions {
    /// Reads the JSON behind CONNECT; what it does not name stays as it is in `self`.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when it is not an object or a field has the wrong type; [`Fault::Protocol`] and
    /// [`Fault::NoRespondersNeedHeaders`] when it asks for what there is not.
    pub fn updated(&self, json: &[u8]) -> Result<Self, Fault> {
        // What is no UTF-8 stands in texts only, or is no JSON all the same.
        let json = String::from_utf8_lossy(json);
        let fields: Option<Fields> = serde_json::from_str(&json).map_err(|_| Fault::Malformed)?;
        let mut options = self.clone();
        for (name, value) in fields.map(|fields| fields.0).unwrap_or_default() {
            options.set(&name, value).ok_or(Fault::Malformed)?;
        }
        if !(0..=HIGHEST_PROTOCOL).contains(&options.protocol) {
            return Err(Fault::Protocol);
        }
        if options.no_responders && !options.headers {
            return Err(Fault::NoRespondersNeedHeaders);
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: Value) -> Option<()> {
        if value.is_null() {
            return Some(());
        }
        let flag = match name {
            "verbose" => Some(&mut self.verbose),
            "pedantic" => Some(&mut self.pedantic),
            "echo" => Some(&mut self.echo),
            "headers" => Some(&mut self.headers),
            "no_responders" => Some(&mut self.no_responders),
            "tls_required" => Some(&mut self.tls_required),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = value.as_bool()?;
            return Some(());
        }
        let text = match name {
            "user" => &mut self.user,
            "pass" => &mut self.pass,
            "auth_token" => &mut self.auth_token,
            "nkey" => &mut self.nkey,
            "sig" => &mut self.sig,
            "jwt" => &mut self.jwt,
            "name" => &mut self.name,
            "lang" => &mut self.lang,
            "version" => &mut self.version,
            "protocol" => {
                self.protocol = value.as_i64()?;
                return Some(());
            }
            _ => return Some(()),
        };
        match value {
            Value::String(given) => *text = Some(given),
            _ => return None,
        }
        Some(())
    }
}

/// The names that mean something here.
const KNOWN: [&str; 16] = [
    "verbose",
    "pedantic",
    "echo",
    "headers",
    "no_responders",
    "tls_required",
    "protocol",
    "user",
    "pass",
    "auth_token",
    "nkey",
    "sig",
    "jwt",
    "name",
    "lang",
    "version",
];

/// The known fields in the order in which they stand there, in lower case. What is in others is skipped, however deep or
/// large it is.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let name = name.to_ascii_lowercase();
            if KNOWN.contains(&name.as_str()) {
                fields.push((name, map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Fields(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ConnectOptions, Fault> {
        ConnectOptions::default().updated(json.as_bytes())
    }

    #[test]
    fn a_second_one_changes_what_it_names() {
        let first = parse(r#"{"verbose":false,"echo":false,"user":"u"}"#).unwrap();
        let second = first.updated(br#"{"echo":true,"user":null}"#).unwrap();
        assert_eq!(second, ConnectOptions { echo: true, ..first });
    }

    #[test]
    fn absent_fields_are_as_in_nats_server() {
        for json in ["null", r#"{}"#, r#"{"verbose":null,"user":null}"#, r#"{"new_field":[1]}"#] {
            assert_eq!(parse(json), Ok(ConnectOptions::default()), "{json}");
        }
    }

    #[test]
    fn fields_are_read_in_any_case_and_the_last_counts() {
        let json = r#"{"Verbose":false,"ECHO":false,"echo":true,"user":"u","pass":"p","protocol":1,"sig":"s"}"#;
        let options = parse(json).unwrap();
        assert!(!options.verbose && options.echo);
        assert_eq!((options.user.as_deref(), options.pass.as_deref()), (Some("u"), Some("p")));
        assert_eq!((options.protocol, options.sig.as_deref()), (1, Some("s")));
    }

    #[test]
    fn the_last_of_two_counts_whatever_their_case() {
        for (json, verbose) in [
            (r#"{"verbose":true,"Verbose":false}"#, false),
            (r#"{"Verbose":true,"verbose":false}"#, false),
            (r#"{"verbose":false,"Verbose":true}"#, true),
            (r#"{"Verbose":false,"verbose":true}"#, true),
        ] {
            assert_eq!(parse(json).map(|options| options.verbose), Ok(verbose), "{json}");
        }
    }

    #[test]
    fn what_is_unknown_may_be_anything_that_is_json() {
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
        for json in [deep.as_str(), r#"{"x":1e999}"#, r#"{"x":"\ud800"}"#] {
            assert_eq!(parse(json), Ok(ConnectOptions::default()), "{json}");
        }
        let lossy = ConnectOptions::default().updated(b"{\"name\":\"a\xff\",\"\xff\":1}").unwrap();
        assert_eq!(lossy.name.as_deref(), Some("a\u{fffd}"));
        assert_eq!(parse(r#"{"x":01}"#), Err(Fault::Malformed));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (json, fault) in [
            ("", Fault::Malformed),
            ("{", Fault::Malformed),
            ("[]", Fault::Malformed),
            (r#"{"verbose":"yes"}"#, Fault::Malformed),
            (r#"{"user":1}"#, Fault::Malformed),
            (r#"{"protocol":9}"#, Fault::Protocol),
            (r#"{"protocol":-1}"#, Fault::Protocol),
            (r#"{"no_responders":true}"#, Fault::NoRespondersNeedHeaders),
        ] {
            assert_eq!(parse(json), Err(fault), "{json}");
        }
    }
}
