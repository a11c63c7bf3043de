//! Bootstrap tokens on the command line: `get` makes one and prints it as one string, with an address of the controller
//! that other machines can reach; `list` and `delete` know it by its id, which is no secret.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::output::{self, Format, OutputArgs, Table};
use crate::bus::access::{CreateJoinToken, ListJoinTokens, MAX_JOIN_TTL_S, MAX_JOIN_USES, NewJoinToken};
use crate::config::address::{self, normalise_bus_url};
use crate::config::duration;
use crate::config::join::BootstrapToken;
use crate::config::target::Target;
use crate::identity::ca::Fingerprint;
use crate::model::account::{JoinId, JoinTokenView};
use crate::model::secret::Secret;
use crate::model::{Timestamp, WorkerName};

/// The most machines for one token, as clap has it.
const MAX_USES: i64 = MAX_JOIN_USES as i64;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard get bootstrap-token | ssh mini-1 \\
      orchard worker run --bootstrap-token-stdin
  orchard get bootstrap-token --ttl 1h --uses 20 > token
      # for a row of machines
  orchard get bootstrap-token --worker mini-1
      # for a worker that lost its key

The token is a secret: until it ends or is used up, whoever has it can join as a worker. Standard output gets
it and nothing else; -q leaves out what is told beside on standard error, but for warnings.
`orchard list bootstrap-tokens` shows those there are, `orchard delete bootstrap-token` takes one back.")]
pub(super) struct BootstrapTokenArgs {
    /// How long it is good, such as 30m, 24h or 7d; at most 366d
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = life)]
    ttl: Duration,
    /// How many machines may join with it; at most 10000
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_USES))]
    uses: u32,
    /// Only the worker of this name may join; it may do so with a new key while the old one is still known
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    /// Where workers reach the bus [default: where you reach it, or what the controller says]
    #[arg(long, value_name = "URL", value_parser = normalise_bus_url)]
    url: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A token that was made, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    id: JoinId,
    /// What `orchard worker run --bootstrap-token-stdin` takes.
    token: Secret,
    /// Where it leads.
    url: String,
    expires_at: Timestamp,
    uses: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<WorkerName>,
}

fn life(text: &str) -> Result<Duration, String> {
    duration::parse_life(text, Duration::from_secs(MAX_JOIN_TTL_S))
}

pub(super) async fn run(arguments: BootstrapTokenArgs, client: &Client) -> anyhow::Result<()> {
    let BootstrapTokenArgs { ttl, uses, worker, url, output } = arguments;
    let request = CreateJoinToken { ttl_s: ttl.as_secs(), uses, worker };
    let made = client.call(&request).await.context("cannot make a bootstrap token")?;
    let chosen = url.is_some();
    let (url, fingerprint) = place(url, client.target(), &made)?;
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
    let told = output.format() != Format::Name;
    if told && !chosen {
        eprintln!("it leads workers to {url}; --url gives them another address");
    }
    let token = BootstrapToken { url, fingerprint, id, secret: made.secret };
    if told {
        let machines = if request.uses == 1 { "one machine".to_owned() } else { format!("{} machines", request.uses) };
        eprintln!("bootstrap token {} is good until {} for {machines}", token.id, made.expires_at);
    }
    if output.format().is_data() {
        let CreateJoinToken { uses, worker, .. } = request;
        let text = token.to_text();
        let BootstrapToken { id, url, .. } = token;
        return Ok(output.format().data(&Made { id, token: text, url, expires_at: made.expires_at, uses, worker })?);
    }
    Ok(output::line(token.to_text().expose())?)
}

/// All bootstrap tokens, page by page.
pub(super) async fn all(client: &Client) -> anyhow::Result<Vec<JoinTokenView>> {
    let mut all: Vec<JoinTokenView> = Vec::new();
    loop {
        let after = all.last().map(|token| token.id.clone());
        let page = client.call(&ListJoinTokens { after, limit: 0 }).await?;
        let more = page.more && !page.tokens.is_empty();
        all.extend(page.tokens);
        if !more {
            return Ok(all);
        }
    }
}

/// Bootstrap tokens, one a row.
pub(super) fn table(tokens: &[JoinTokenView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["ID", "Made by", "Created", "For worker", "Uses left", "Ends"]);
    for token in tokens {
        table.row([
            token.id.to_string(),
            token.created_by.to_string(),
            output::ago(token.created_at, now),
            token.worker.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string),
            token.uses_left.to_string(),
            token.expires_at.to_string(),
        ]);
    }
    table
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

    #[test]
    fn tokens_are_listed_by_their_ids() {
        let token = |worker: Option<&str>, uses_left| JoinTokenView {
            id: "0123456789abcdef".parse().unwrap(),
            created_by: "ann".parse().unwrap(),
            created_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(86_400_000),
            uses_left,
            worker: worker.map(|name| name.parse().unwrap()),
        };
        let text = table(&[token(None, 3), token(Some("mini-1"), 0)], Timestamp::from_millis(60_000))
            .text(output::Screen::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("0123456789abcdef  ann      1 minute ago  any         3          1970-01-02T"),
            "{text}"
        );
        assert!(lines[2].contains("  mini-1      0 "), "{text}");
    }

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
