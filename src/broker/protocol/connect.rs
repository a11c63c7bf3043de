//! What a client says of itself in CONNECT. Pure; called by the session.
//!
//! Read as nats-server reads it: names of fields in any case, `null` for absent, the last of two, unknown ones ignored, and
//! a value of the wrong type ends the connection. What a second CONNECT does not name stays as it was.

use serde_json::{Map, Value};

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
        let fields: Option<Map<String, Value>> = serde_json::from_slice(json).map_err(|_| Fault::Malformed)?;
        let mut options = self.clone();
        for (name, value) in fields.unwrap_or_default() {
            options.set(&name.to_ascii_lowercase(), value).ok_or(Fault::Malformed)?;
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
