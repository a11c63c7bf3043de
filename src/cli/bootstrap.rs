//! `orchard get bootstrap-token`: makes a join token and prints it as one string, with an address of the controller that
//! other machines can reach.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::client::Client;
use super::output;
use crate::bus::access::{CreateJoinToken, NewJoinToken};
use crate::config::address::{self, normalise_bus_url};
use crate::config::duration;
use crate::config::join::BootstrapToken;
use crate::config::target::Target;
use crate::identity::ca::Fingerprint;
use crate::model::WorkerName;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard get bootstrap-token | ssh mini-1 orchard worker run --bootstrap-token-stdin
  orchard get bootstrap-token --ttl 1h --uses 20 > token   # for a row of machines
  orchard get bootstrap-token --worker mini-1              # for a worker that lost its key

The token is a secret: until it ends or is used up, whoever has it can join as a worker.")]
pub(super) struct BootstrapTokenArgs {
    /// How long it is good, such as 30m, 24h or 7d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    ttl: Duration,
    /// How many machines may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Only the worker of this name may join; it may do so with a new key while the old one is still known
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    /// Where workers reach the bus [default: where you reach it, or what the controller says]
    #[arg(long, value_name = "URL", value_parser = normalise_bus_url)]
    url: Option<String>,
}

pub(super) async fn run(arguments: BootstrapTokenArgs, client: &Client) -> anyhow::Result<()> {
    let request = CreateJoinToken { ttl_s: arguments.ttl.as_secs(), uses: arguments.uses, worker: arguments.worker };
    let made = client.call(&request).await.context("cannot make a bootstrap token")?;
    let (url, fingerprint) = place(arguments.url, client.target(), &made)?;
    if address::is_loopback(&url) {
        eprintln!(
            "WARNING: {url} is reached from this machine only; for workers on others, say with --url where they find the \
             controller"
        );
    }
    if address::is_plain(&url) && fingerprint.is_none() && !address::is_loopback(&url) {
        eprintln!("WARNING: {url} means plain text: the join secret can be read on its way");
    }
    let id = made.id.parse().map_err(|error| anyhow::anyhow!("the controller's answer has no usable id: {error}"))?;
    let token = BootstrapToken { url, fingerprint, id, secret: made.secret };
    eprintln!(
        "good until {} for {}",
        made.expires_at,
        match request.uses {
            1 => "one machine".to_owned(),
            uses => format!("{uses} machines"),
        }
    );
    output::line(token.to_text().expose())?;
    Ok(())
}

/// Where the workers are sent, and which certificate they are to expect there. The address that this very command uses
/// is proven to work, and so is what it trusts there; for any other the controller's own word is taken.
fn place(asked: Option<String>, used: &Target, made: &NewJoinToken) -> anyhow::Result<(String, Option<Fingerprint>)> {
    let advertised = match &made.bus_url {
        Some(url) => {
            Some(normalise_bus_url(url).map_err(|why| anyhow::anyhow!("the controller's own address: {why}"))?)
        }
        None => None,
    };
    let used_by_others = Some(used.url.clone()).filter(|url| !address::is_loopback(url));
    let advertised_to_others = advertised.clone().filter(|url| !address::is_loopback(url));
    let url = asked.or(used_by_others).or(advertised_to_others).unwrap_or_else(|| used.url.clone());
    if url == used.url {
        return Ok((url, used.fingerprint));
    }
    let fingerprint = match &made.fingerprint {
        Some(text) => Some(text.parse().context("the controller's answer")?),
        None => None,
    };
    Ok((url, fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::secret::Secret;

    #[test]
    fn workers_are_sent_where_they_can_go_and_told_what_to_expect_there() {
        let (pin, own) = (Fingerprint::of(b"seen by the user"), Fingerprint::of(b"the controller's"));
        let place = |asked: Option<&str>, used: &str, advertised: Option<&str>| {
            let used = Target {
                url: used.to_owned(),
                fingerprint: Some(pin),
                account: "a".parse().unwrap(),
                token: Secret::new("t"),
            };
            let made = NewJoinToken {
                id: String::new(),
                secret: Secret::new("s"),
                expires_at: Timestamp::default(),
                bus_url: advertised.map(str::to_owned),
                fingerprint: Some(own.to_string()),
            };
            place(asked.map(str::to_owned), &used, &made).unwrap()
        };
        let (far, near, given) = ("tls://ctl:4222", "tls://127.0.0.1:4222", "tls://vpn:1");
        assert_eq!(place(None, far, Some("tls://other:4222")), (far.to_owned(), Some(pin)));
        assert_eq!(place(None, near, Some(far)), (far.to_owned(), Some(own)));
        assert_eq!(place(None, near, Some("tls://127.0.0.1:9")), (near.to_owned(), Some(pin)));
        assert_eq!(place(None, near, None), (near.to_owned(), Some(pin)));
        assert_eq!(place(Some(given), far, None), (given.to_owned(), Some(own)));
    }
}
