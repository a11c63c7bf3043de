//! Which controller a command goes to and who it is there: the saved contexts, with what the environment puts in their
//! place. Called by the command line for each command.

use super::context::{Context, ContextError, Contexts};
use super::{address, variable};
use crate::identity::ca::Fingerprint;
use crate::model::AccountName;
use crate::model::secret::Secret;

/// The variable for the controller's address.
pub const URL: &str = "ORCHARD_URL";
const ACCOUNT: &str = "ORCHARD_SERVICE_ACCOUNT_NAME";
const TOKEN: &str = "ORCHARD_SERVICE_ACCOUNT_TOKEN";
const FINGERPRINT: &str = "ORCHARD_FINGERPRINT";

/// What stands in the environment; each replaces that part of the default context for one command.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `ORCHARD_URL`.
    pub url: Option<String>,
    /// `ORCHARD_SERVICE_ACCOUNT_NAME`.
    pub account: Option<String>,
    /// `ORCHARD_SERVICE_ACCOUNT_TOKEN`.
    pub token: Option<Secret>,
    /// `ORCHARD_FINGERPRINT`.
    pub fingerprint: Option<String>,
}

impl Overrides {
    /// Reads the environment; an empty variable counts as not set.
    ///
    /// # Errors
    /// [`ContextError::Variable`].
    pub fn from_environment() -> Result<Self, ContextError> {
        Ok(Self {
            url: variable(URL)?,
            account: variable(ACCOUNT)?,
            token: variable(TOKEN)?.map(Secret::new),
            fingerprint: variable(FINGERPRINT)?,
        })
    }

    /// Refuses one of account and token without the other: the token of one account opens no other.
    fn check(&self) -> Result<(), ContextError> {
        match (&self.account, &self.token) {
            (Some(_), None) => Err(ContextError::HalfSet { given: ACCOUNT, missing: TOKEN }),
            (None, Some(_)) => Err(ContextError::HalfSet { given: TOKEN, missing: ACCOUNT }),
            _ => Ok(()),
        }
    }
}

/// Where to go and who to be there: a context in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The bus, in full.
    pub url: String,
    /// The certificate to expect there, as in [`Context::fingerprint`].
    pub fingerprint: Option<Fingerprint>,
    /// The account.
    pub account: AccountName,
    /// Its token.
    pub token: Secret,
}

impl Target {
    /// What `contexts` and `overrides` come to. A context that is `named` is used as it stands, so that a token meant
    /// for one controller, left over in the environment, is not shown to another.
    ///
    /// # Errors
    /// What is missing and how to give it.
    pub fn resolve(contexts: &Contexts, named: Option<&str>, overrides: Overrides) -> Result<Self, ContextError> {
        let (name, overrides) = match named {
            Some(name) => (Some(name), Overrides::default()),
            None => (contexts.default.as_deref(), overrides),
        };
        overrides.check()?;
        let context = match name {
            // A default that was removed by hand does not matter to a command that has it all from elsewhere.
            Some(name) if named.is_some() || overrides.url.is_none() => Some(contexts.get(name)?),
            Some(name) => contexts.contexts.get(name),
            None => None,
        };
        let from_environment = overrides.url.is_some();
        let url = overrides.url.or_else(|| context.map(|c| c.url.clone())).ok_or(ContextError::NoDefault)?;
        let url = address::normalise_bus_url(&url).map_err(|reason| {
            let of = if from_environment { URL.to_owned() } else { described(name) };
            ContextError::Address { of, reason }
        })?;
        let given = overrides.fingerprint.map(|text| text.parse().map_err(ContextError::Fingerprint)).transpose()?;
        // A saved token goes to where its context leads, or to whoever shows the certificate that the context expects.
        let trusted = match from_environment {
            false => context,
            true => leading_to(contexts, context, &url).or(context.filter(|context| {
                let shows = overrides.token.is_none();
                shows && given.is_none() && context.fingerprint.is_some() && !address::is_plain(&url)
            })),
        };
        let fingerprint = given.or(trusted.and_then(|context| context.fingerprint));
        let of = match trusted {
            Some(_) => described(name),
            None => format!("{url}, which no saved context leads to"),
        };
        let account = match overrides.account {
            Some(name) => Some(name.parse().map_err(ContextError::Account)?),
            None => trusted.or(context).and_then(|context| context.account.clone()),
        };
        let token = overrides.token.or_else(|| trusted.and_then(|context| context.token.clone()));
        let lacks = |what| {
            // The one does not help without the other.
            let variable = "ORCHARD_SERVICE_ACCOUNT_NAME and ORCHARD_SERVICE_ACCOUNT_TOKEN";
            ContextError::Incomplete { from_environment, of: of.clone(), what, variable }
        };
        Ok(Self {
            account: account.ok_or_else(|| lacks("service account"))?,
            token: token.ok_or_else(|| lacks("token"))?,
            url,
            fingerprint,
        })
    }
}

/// The saved context for `url`, however that is written; the default one if it is.
fn leading_to<'a>(contexts: &'a Contexts, default: Option<&'a Context>, url: &str) -> Option<&'a Context> {
    let leads_there = |context: &&Context| {
        address::normalise_bus_url(&context.url).is_ok_and(|known| known.eq_ignore_ascii_case(url))
    };
    default.into_iter().chain(contexts.contexts.values()).find(leads_there)
}

fn described(name: Option<&str>) -> String {
    name.map_or_else(|| "the environment".to_owned(), |name| format!("context {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context {
            url: url.to_owned(),
            account: Some("bootstrap-admin".parse().unwrap()),
            token: Some(Secret::new("of the context")),
            fingerprint: Some(Fingerprint::of(url.as_bytes())),
            other: Default::default(),
        }
    }

    #[test]
    fn the_environment_replaces_parts_of_the_default_but_not_of_a_named_context() {
        let mut all = Contexts::default();
        all.put("home", context("ctl"), true);
        let print = Fingerprint::of(b"other");
        let from_env = || Overrides {
            url: Some("other:1".into()),
            account: Some("ann".into()),
            token: Some(Secret::new("t")),
            fingerprint: Some(print.to_string()),
        };
        let target = Target::resolve(&all, None, from_env()).unwrap();
        assert_eq!((target.url.as_str(), target.token.expose()), ("tls://other:1", "t"));
        assert_eq!(target.account.as_str(), "ann");
        assert_eq!(target.fingerprint, Some(print));
        let target = Target::resolve(&all, Some("home"), from_env()).unwrap();
        assert_eq!((target.url.as_str(), target.token.expose()), ("tls://ctl:4222", "of the context"));
        assert_eq!(target.fingerprint, Some(Fingerprint::of(b"ctl")));
    }

    #[test]
    fn a_pin_holds_for_its_address_however_that_is_given_and_for_no_other() {
        let mut all = Contexts::default();
        all.put("home", context("ctl"), true);
        all.put("work", context("tls://work.example:9"), false);
        let at = |url: &str| {
            let (account, token) = (Some("a".into()), Some(Secret::new("t")));
            let overrides = Overrides { url: Some(url.into()), account, token, fingerprint: None };
            Target::resolve(&all, None, overrides).unwrap().fingerprint
        };
        assert_eq!(at("tls://ctl:4222/"), Some(Fingerprint::of(b"ctl")));
        assert_eq!(at("CTL"), Some(Fingerprint::of(b"ctl")));
        assert_eq!(at("work.example:9"), Some(Fingerprint::of(b"tls://work.example:9")));
        assert_eq!(at("work.example"), None);
        assert_eq!(at("nats://ctl"), None, "plain text is another address");
    }

    #[test]
    fn a_saved_token_is_shown_to_nobody_but_its_controller() {
        let mut all = Contexts::default();
        all.put("home", context("ctl"), true);
        all.put("open", Context { fingerprint: None, ..context("tls://open.example") }, false);
        let at = |all: &Contexts, url: &str, fingerprint: Option<&str>| {
            let fingerprint = fingerprint.map(str::to_owned);
            let overrides = Overrides { url: Some(url.into()), fingerprint, ..Overrides::default() };
            Target::resolve(all, None, overrides)
        };
        // Elsewhere, but only to whoever shows the certificate that the context expects.
        assert_eq!(at(&all, "elsewhere", None).unwrap().fingerprint, Some(Fingerprint::of(b"ctl")));
        let print = Fingerprint::of(b"another").to_string();
        assert!(matches!(at(&all, "elsewhere", Some(&print)), Err(ContextError::Incomplete { .. })));
        for plain in ["nats://ctl", "nats://127.0.0.1:1"] {
            let error = at(&all, plain, None).unwrap_err().to_string();
            assert!(error.contains("ORCHARD_SERVICE_ACCOUNT"), "{error}");
        }
        all.default = Some("open".into());
        assert!(at(&all, "open.example", None).is_ok());
        assert!(matches!(at(&all, "elsewhere", None), Err(ContextError::Incomplete { .. })));
    }

    #[test]
    fn an_account_and_its_token_go_together() {
        let mut all = Contexts::default();
        all.put("home", context("ctl"), true);
        let (account, token) = (Some("a".to_owned()), Some(Secret::new("t")));
        for (account, token, given, missing) in [(account, None, ACCOUNT, TOKEN), (None, token, TOKEN, ACCOUNT)] {
            let overrides = Overrides { account, token, ..Overrides::default() };
            let error = Target::resolve(&all, None, overrides.clone()).unwrap_err();
            assert!(error.is_usage() && error.to_string().starts_with(given), "{error}");
            assert!(error.to_string().contains(&format!("{missing} is not")), "{error}");
            assert!(Target::resolve(&all, Some("home"), overrides).is_ok(), "a named context is used as it stands");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let empty = Contexts::default();
        let resolve = |all: &Contexts, name: Option<&str>, overrides| Target::resolve(all, name, overrides);
        assert!(matches!(resolve(&empty, None, Overrides::default()), Err(ContextError::NoDefault)));
        assert!(matches!(resolve(&empty, Some("x"), Overrides::default()), Err(ContextError::Unknown { .. })));
        let only_url = Overrides { url: Some("ctl".into()), ..Overrides::default() };
        let error = resolve(&empty, None, only_url).unwrap_err();
        assert!(error.is_usage(), "{error}");
        let error = error.to_string();
        assert!(error.contains(ACCOUNT) && error.contains(TOKEN), "{error}");
        let mut gone = Contexts { default: Some("gone".into()), ..Contexts::default() };
        assert!(matches!(resolve(&gone, None, Overrides::default()), Err(ContextError::Unknown { .. })));
        gone.put("bad", context("https://x"), true);
        assert!(matches!(resolve(&gone, None, Overrides::default()), Err(ContextError::Address { .. })));
        let bad_pin = Overrides { fingerprint: Some("12:34".into()), ..Overrides::default() };
        let error = resolve(&gone, None, Overrides { url: Some("ctl".into()), ..bad_pin }).unwrap_err();
        assert!(matches!(error, ContextError::Fingerprint(_)), "{error}");
    }
}
