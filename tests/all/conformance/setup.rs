//! The configurations that both servers are started with. `server` starts them.

use std::sync::Arc;
use std::time::Duration;

use orchard::broker::auth::StaticUsers;
use orchard::broker::tls::{Tls, TlsFirst};
use orchard::broker::{Broker, Builder, Limits};

use super::{certificate, claims, keys};

/// A configuration that both servers are started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Everybody may do everything.
    Open,
    /// The same with little room: payload 100, control line 256, 3 subscriptions.
    Small,
    /// Users with passwords and permissions.
    Users,
    /// One token, `t0ken`.
    Token,
    /// One nkey.
    Nkey,
    /// Users with signed claims, some of which end.
    Claims,
    /// Two connections and no more.
    Crowded,
    /// 300 ms to say who one is.
    Impatient,
    /// Pings every two seconds of which one may go unanswered; user `u`, password `p`.
    Pinging,
    /// Pings every 200 ms, and a user `late` whose right to answer ends after 100 ms.
    Answers,
    /// Open, and made a lame duck by the scripts.
    Leaving,
    /// [`BEFORE`], until a script makes it [`AFTER`].
    Changing,
    /// TLS after INFO, with the certificate of `certificate`.
    Tls,
    /// TLS before INFO.
    TlsFirst,
    /// The same for those who begin at once, which here means within five seconds.
    TlsWithin,
    /// The same within the usual 50 ms, after INFO for the others.
    TlsAuto,
    /// TLS with certificates of clients.
    TlsVerify,
    /// TLS with three seconds for the handshake.
    TlsImpatient,
    /// TLS and two connections.
    TlsCrowded,
    /// TLS before INFO and two connections.
    TlsFirstCrowded,
}

/// Lists of users, as both servers read them.
const USERS: &str = r#"[
  { "user": "free", "password": "pw" },
  { "user": "strict", "password": "pw", "permissions": {
      "publish": { "allow": ["foo.>", "s.*.ok", "_INBOX.>"], "deny": ["foo.no.>", "foo.*.secret"] },
      "subscribe": { "allow": ["foo.>", "s.*.ok", "q.* workers", "v.> dev.*"], "deny": ["foo.no.>", "v.*.bad dev.a"] } } },
  { "user": "mute", "password": "pw", "permissions": { "publish": { "deny": ">" } } },
  { "user": "deaf", "password": "pw", "permissions": { "subscribe": { "deny": ">" } } },
  { "user": "one", "password": "pw", "permissions": { "publish": "one.>", "subscribe": "one.>" } },
  { "user": "level", "password": "pw", "permissions": { "subscribe": { "deny": "lv.*" } } },
  { "user": "nothing", "password": "pw", "permissions": { "publish": { "allow": [] }, "subscribe": { "allow": [] } } },
  { "user": "crews", "password": "pw", "permissions": { "subscribe": {
      "allow": ["w.>", "w.*.g v1", "*.*.g v3.*", "d.>"], "deny": ["d.*.g", "d.*.g v1", "d.*.h v1"] } } },
  { "user": "nodeny", "password": "pw", "permissions": {
      "publish": { "deny": ["*.hidden.>"] }, "subscribe": { "deny": ["*.hidden.>"] } } },
  { "user": "helper", "password": "pw", "permissions": { "subscribe": "ask.>", "allow_responses": true } },
  { "user": "helper3", "password": "pw", "permissions": {
      "publish": { "allow": "own.>", "deny": "own.no" }, "subscribe": ["ask.>", "own.>"],
      "allow_responses": { "max": 3, "expires": "1m" } } },
  { "user": "endless", "password": "pw", "permissions": {
      "subscribe": "ask.>", "allow_responses": { "max": -1, "expires": "1m" } } }
]"#;
const TOKEN: &str = r#"{ "token": "t0ken" }"#;
const IMPATIENT: &str = r#"[{ "user": "u", "password": "p" }]"#;
const ANSWERS: &str = r#"[
  { "user": "free", "password": "pw" },
  { "user": "late", "password": "pw", "permissions": {
      "subscribe": "ask.>", "allow_responses": { "max": -1, "expires": "100ms" } } },
  { "user": "twice", "password": "pw", "permissions": {
      "subscribe": "ask.>", "allow_responses": { "max": 2, "expires": "1m" } } }
]"#;
/// Users that a change leaves as they are, takes away or brings, and those whose rights or password it changes.
const BEFORE: &str = r#"[
  { "user": "free", "password": "pw" },
  { "user": "same", "password": "pw", "permissions": { "publish": "a.>", "subscribe": "a.>" } },
  { "user": "gone", "password": "pw" },
  { "user": "pass", "password": "pw" },
  { "user": "less", "password": "pw", "permissions": {
      "publish": ["a.>", "both.>"], "subscribe": ["a.>", "q.>", "both.>", "part.>"], "allow_responses": true } },
  { "user": "more", "password": "pw", "permissions": { "publish": "a.>", "subscribe": { "allow": "a.>", "deny": "a.no.>" } } }
]"#;
const AFTER: &str = r#"[
  { "user": "free", "password": "pw" },
  { "user": "same", "password": "pw", "permissions": { "publish": "a.>", "subscribe": "a.>" } },
  { "user": "pass", "password": "other" },
  { "user": "less", "password": "pw", "permissions": {
      "publish": ["b.>", "both.>"], "subscribe": { "allow": ["both.>", "part.>", "q.> one"], "deny": "part.no.>" } } },
  { "user": "more", "password": "pw", "permissions": { "publish": ["a.>", "b.>"], "subscribe": ["a.>", "b.>"], "allow_responses": true } },
  { "user": "new", "password": "pw" }
]"#;

/// What nats-server waits before it sends clients off; shorter than its usual ten seconds, long enough for a script.
const GRACE: Duration = Duration::from_secs(4);

impl Setup {
    /// The setup that a table calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        super::PLAYED.iter().copied().find(|setup| format!("{setup:?}") == name)
    }

    /// Whether a play may fail because connections of the one before are not gone yet.
    pub fn is_crowded(self) -> bool {
        matches!(self, Self::Crowded | Self::TlsCrowded | Self::TlsFirstCrowded)
    }

    /// Whether the scripts change the server for good, so that each must have its own.
    pub fn is_used_up(self) -> bool {
        matches!(self, Self::Leaving | Self::Changing)
    }

    /// Whether INFO comes after the handshake only.
    pub fn is_tls_first(self) -> bool {
        matches!(self, Self::TlsFirst | Self::TlsWithin | Self::TlsFirstCrowded)
    }

    /// The users of the beginning; `None` when everybody is let in.
    fn list(self) -> Option<String> {
        match self {
            Self::Users => Some(USERS.to_owned()),
            Self::Token => Some(format!("[{TOKEN}]")),
            Self::Nkey => Some(format!(r#"[{{ "nkey": "{}" }}]"#, keys::Key::Known.public())),
            Self::Impatient | Self::Pinging => Some(IMPATIENT.to_owned()),
            Self::Answers => Some(ANSWERS.to_owned()),
            Self::Changing => Some(BEFORE.to_owned()),
            _ => None,
        }
    }

    /// nats-server's configuration.
    pub fn nats_config(self) -> String {
        match self {
            Self::Small => "max_payload: 100\nmax_control_line: 256\nmax_subscriptions: 3\n".into(),
            Self::Token => authorization("timeout: 30, token: t0ken"),
            Self::Impatient => authorization("timeout: 0.3, user: u, password: p"),
            Self::Pinging => {
                format!("ping_interval: 2s\nping_max: 1\n{}", authorization("timeout: 30, user: u, password: p"))
            }
            Self::Answers => format!("ping_interval: 200ms\nping_max: 1000\n{}", users(ANSWERS)),
            Self::Leaving => {
                // Thirty seconds are the least it takes; few clients are gone a second after one another all the same.
                format!("lame_duck_duration: 30s\nlame_duck_grace_period: {}s", GRACE.as_secs())
            }
            Self::Claims => claims::nats_config(),
            Self::Crowded => "max_connections: 2".into(),
            Self::Tls => tls("timeout: 30"),
            Self::TlsFirst => tls("timeout: 30, handshake_first: true"),
            Self::TlsWithin => tls(r#"timeout: 30, handshake_first: "5s""#),
            Self::TlsAuto => tls("timeout: 30, handshake_first: auto"),
            Self::TlsVerify => tls("timeout: 30, verify: true, ca_file: /ca.pem"),
            Self::TlsImpatient => tls("timeout: 3"),
            Self::TlsCrowded => format!("max_connections: 2\n{}", tls("timeout: 30")),
            Self::TlsFirstCrowded => format!("max_connections: 2\n{}", tls("timeout: 30, handshake_first: true")),
            Self::Open | Self::Users | Self::Nkey | Self::Changing => {
                self.list().as_deref().map(users).unwrap_or_default()
            }
        }
    }

    /// The same after the change that a script asks for.
    pub fn nats_config_after(self) -> String {
        assert_eq!(self, Self::Changing);
        users(AFTER)
    }

    /// Ours, but for its users.
    pub fn builder(self) -> Builder {
        let builder = Broker::builder().limits(self.limits());
        let tls = || {
            let (certificate, key, ca) = certificate::pem();
            let ca = (self == Self::TlsVerify).then_some(ca.as_bytes());
            Tls::from_pem(certificate.as_bytes(), key.as_bytes(), ca).unwrap()
        };
        match self {
            Self::Claims => builder.authenticator(Arc::new(claims::Claims)),
            Self::Tls | Self::TlsVerify | Self::TlsImpatient | Self::TlsCrowded => builder.tls(tls()),
            Self::TlsFirst | Self::TlsFirstCrowded => builder.tls(tls().first(TlsFirst::Always)),
            Self::TlsWithin => builder.tls(tls().first(TlsFirst::Within(Duration::from_secs(5)))),
            Self::TlsAuto => builder.tls(tls().first(TlsFirst::Auto)),
            _ => builder,
        }
    }

    fn limits(self) -> Limits {
        let limits = Limits { auth_timeout: Duration::from_secs(30), ..Limits::default() };
        match self {
            Self::Small => Limits { max_payload: 100, max_control_line: 256, max_subscriptions: 3, ..limits },
            Self::Crowded | Self::TlsCrowded | Self::TlsFirstCrowded => Limits { max_connections: 2, ..limits },
            Self::Impatient => Limits { auth_timeout: Duration::from_millis(300), ..limits },
            Self::Pinging => Limits { ping_interval: Duration::from_secs(2), max_pings_out: 1, ..limits },
            Self::Answers => Limits { ping_interval: Duration::from_millis(200), max_pings_out: 1_000, ..limits },
            Self::TlsImpatient => Limits { auth_timeout: Duration::from_secs(3), ..limits },
            _ => limits,
        }
    }

    /// Our users of the beginning.
    pub fn users(self) -> Option<StaticUsers> {
        self.list().map(|list| static_users(&list))
    }

    /// Our users after the change that a script asks for.
    pub fn users_after(self) -> StaticUsers {
        assert_eq!(self, Self::Changing);
        static_users(AFTER)
    }
}

fn static_users(list: &str) -> StaticUsers {
    StaticUsers::from_json(&format!("{{ \"users\": {list} }}")).unwrap()
}

fn users(list: &str) -> String {
    authorization(&format!("timeout: 30, users: {list}"))
}

fn authorization(block: &str) -> String {
    format!("authorization {{ {block} }}")
}

fn tls(more: &str) -> String {
    format!("tls {{ cert_file: /cert.pem, key_file: /key.pem, {more} }}")
}
