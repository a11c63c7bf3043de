//! `orchard audit`: who asked for what, from where, and what came of it. The trail has numbers of its own.

use clap::Args;

use super::client::Client;
use super::follow;
use super::output::{self, Format, OutputArgs};
use crate::bus::access::{AuditPage, ListAudit};
use crate::bus::subject;
use crate::model::audit::{AuditNumber, AuditRecord};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard audit                 all that is kept
  orchard audit --after 120 -f  from #121 on, then live
  orchard audit -o json | jq 'select(.outcome == \"refused\")'   one JSON object a line")]
pub(super) struct AuditArgs {
    /// Begin after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    after: AuditNumber,
    /// Go on with new records as they are made
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(arguments: AuditArgs, client: &Client) -> anyhow::Result<()> {
    // Listening begins first, so that no record falls between the replay and the rest.
    let mut signals = match arguments.follow {
        true => Some(client.bus().subscribe(&subject::events_of_kind("audit")).await?),
        false => None,
    };
    let mut position = arguments.after;
    print_rest(&arguments, client, &mut position).await?;
    let Some(signals) = &mut signals else { return Ok(()) };
    let follow = follow::follow(signals, async || {
        print_rest(&arguments, client, &mut position).await?;
        Ok(true)
    });
    client.until_refused(follow).await
}

/// Prints all pages after `position`, and moves it.
async fn print_rest(arguments: &AuditArgs, client: &Client, position: &mut AuditNumber) -> anyhow::Result<()> {
    loop {
        let after = *position;
        let page = client.call(&ListAudit { after, limit: 0 }).await?;
        if page.last < after {
            anyhow::bail!(
                "record #{after} was already seen, but the controller's newest is #{}: it runs on other data now; start \
                 again without --after",
                page.last
            );
        }
        if let Some(note) = trimmed(after, &page) {
            eprintln!("{note}");
        }
        let show = |record: &AuditRecord| match arguments.output.output {
            Format::Json => output::json_line(record),
            Format::Table => Ok(describe(record)),
        };
        let new = page.records.iter().filter(|record| record.number > after);
        output::lines(new.map(show).collect::<Result<Vec<_>, _>>()?)?;
        *position = page.next.max(after);
        if *position >= page.last || *position == after {
            return Ok(());
        }
    }
}

/// What to tell when records between `after` and the page are no longer kept.
fn trimmed(after: AuditNumber, page: &AuditPage) -> Option<String> {
    let first_wanted = after.saturating_add(1);
    (page.first_kept > first_wanted && page.last > after)
        .then(|| format!("records #{first_wanted} to #{} are no longer kept", page.first_kept - 1))
}

/// A record as a line for people. Names in it may be a stranger's words.
fn describe(record: &AuditRecord) -> String {
    let mut line = format!("{}  #{}  {}", record.time, record.number, record.kind.as_str());
    let words = [&record.account, &record.verb, &record.target, record.outcome.as_str(), &record.message];
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        line.push_str("  ");
        line.push_str(&output::clean(word));
    }
    if !record.address.is_empty() {
        line.push_str(&format!("  from {}", output::clean(&record.address)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::audit::{AuditType, Deed, Outcome};

    #[test]
    fn a_record_is_one_line_whatever_a_stranger_calls_himself() {
        let deed = Deed {
            kind: AuditType::LoginFailed,
            account: "mal\nlory\u{1b}[2J".into(),
            address: "192.0.2.7".into(),
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: "wrong token".into(),
        };
        let line = describe(&AuditRecord::new(3, Timestamp::from_millis(1_700_000_000_123), deed));
        let account = "mal lory\\u{1b}[2J";
        assert_eq!(
            line,
            format!("2023-11-14T22:13:20.123Z  #3  login-failed  {account}  refused  wrong token  from 192.0.2.7")
        );
    }
}
