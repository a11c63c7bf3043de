//! The connection of client commands: what [`crate::client`] has not, as it is about terminals and exit codes.

use super::{Global, UsageError};
use crate::bus::probe;
pub(super) use crate::client::Client;
use crate::client::find_target;
use crate::config::address::{self, normalise_bus_url};
use crate::config::context::{ContextError, Contexts};
use crate::config::file::ContextFile;
use crate::config::{Home, target, variable};
use crate::identity::ca::Fingerprint;
use crate::model::error::{ApiError, ErrorCode};

impl Client {
    /// Finds the context and connects.
    pub(super) async fn connect(home: &Home, global: &Global) -> anyhow::Result<Self> {
        if let Some(warning) = ContextFile::new(home.clone()).exposure() {
            eprintln!("{warning}");
        }
        let target = find_target(home, global.context.as_deref()).map_err(|error| match error {
            ContextError::Io { .. } | ContextError::Syntax { .. } => {
                anyhow::Error::new(error).context("cannot find out which controller to use")
            }
            error if error.is_usage() => UsageError(error.to_string()).into(),
            error => error.into(),
        })?;
        let (url, expected) = (target.url.clone(), target.fingerprint);
        let error = match Self::log_in(target).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        match (error.code, expected) {
            (ErrorCode::Unauthenticated, _) => {
                let how = "log in anew with `orchard context create";
                Err(ApiError::new(error.code, format!("{error}; {how} {url} --force`")).into())
            }
            (ErrorCode::Unavailable, Some(expected)) if !address::is_plain(&url) => {
                let text = match other_certificate(&url, expected).await {
                    Some(shown) => whose_certificate(&error, &url, shown, home, global),
                    None => error.message,
                };
                Err(ApiError::new(error.code, text).into())
            }
            _ => Err(error.into()),
        }
    }

    /// Tells, if that is so, what is left to do at the operator's own NATS server.
    pub(super) fn note_outside(&self, outside: bool, todo: &str) {
        if outside {
            let url = &self.target().url;
            eprintln!(
                "NOTE: the NATS server at {url} is not the controller's and decides by itself who gets in: {todo}"
            );
        }
    }

    /// Does what goes on for long, until its end or until the account is let in no more.
    pub(super) async fn until_refused(&self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            done = work => done,
            error = self.shut_out() => Err(error.into()),
        }
    }
}

/// The saved context that a command uses; none when the environment says where to go.
pub(super) fn context_in_force(home: &Home, global: &Global) -> anyhow::Result<Option<String>> {
    if global.context.is_some() || variable(target::URL)?.is_some() {
        return Ok(global.context.clone());
    }
    Ok(ContextFile::new(home.clone()).load()?.default)
}

/// The certificate that is shown at `url`, if it is not the expected one.
async fn other_certificate(url: &str, expected: Fingerprint) -> Option<Fingerprint> {
    let first = url.split(',').next().unwrap_or(url);
    let (host, port) = (address::host_of(first)?, address::port_of(first)?);
    let shown = probe::certificate_at(host, port).await.ok()?.fingerprint;
    (shown != expected).then_some(shown)
}

/// The error with the context that was used, and with the one that is of the controller that answered, if there is one: on
/// one machine, `orchard dev` and `orchard controller run` take turns at the same address.
fn whose_certificate(error: &ApiError, url: &str, shown: Fingerprint, home: &Home, global: &Global) -> String {
    let used = context_in_force(home, global).ok().flatten();
    let used = used.map(|name| format!("context {name}: ")).unwrap_or_default();
    let contexts = ContextFile::new(home.clone()).load().unwrap_or_default();
    let advice = trusting(&contexts, url, shown).map(|name| {
        format!(
            "; the controller that answers is that of context {name}: `--context {name}` (or `orchard context default \
             {name}`) leads there"
        )
    });
    format!("{used}{error}{}", advice.unwrap_or_default())
}

/// The saved context for `url` that trusts the certificate `shown`.
fn trusting<'a>(contexts: &'a Contexts, url: &str, shown: Fingerprint) -> Option<&'a str> {
    let leads_there = |known: &str| normalise_bus_url(known).is_ok_and(|known| known.eq_ignore_ascii_case(url));
    let mut all = contexts.contexts.iter();
    all.find(|(_, context)| context.fingerprint == Some(shown) && leads_there(&context.url))
        .map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::context::Context;

    #[test]
    fn the_context_of_the_controller_that_answers_is_found_by_its_certificate() {
        let context = |url: &str, certificate: &[u8]| Context {
            url: url.to_owned(),
            account: None,
            token: None,
            fingerprint: Some(Fingerprint::of(certificate)),
            other: Default::default(),
        };
        let mut all = Contexts::default();
        all.put("local-dev", context("tls://127.0.0.1:4222", b"dev"), true);
        all.put("elsewhere", context("tls://ctl:4222", b"own"), false);
        all.put("mine", context("127.0.0.1", b"own"), false);
        let url = "tls://127.0.0.1:4222";
        assert_eq!(trusting(&all, url, Fingerprint::of(b"own")), Some("mine"));
        assert_eq!(trusting(&all, url, Fingerprint::of(b"dev")), Some("local-dev"));
        assert_eq!(trusting(&all, url, Fingerprint::of(b"another")), None);
    }
}
