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
  orchard audit
      # all that is kept
  orchard audit --after 120 -f
      # from #121 on, then live
  orchard audit -o json | jq 'select(.outcome == \"refused\")'
      # one JSON object a line
  orchard audit -q | sort | uniq -c
      # how often which account asked

The name of a record is its account's. With -o wide each line ends with the name of its request, by which the controller's
log and traces know it.")]
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
        let show = |record: &AuditRecord| match arguments.output.format() {
            Format::Table => Ok(describe(record)),
            Format::Wide => Ok(describe(record) + &request(record)),
            Format::Name => Ok(output::clean(&record.account)),
            format => format.record(record),
        };
        let new = page.records.iter().filter(|record| record.number > after);
        output::lines(new.map(show).collect::<Result<Vec<_>, _>>()?)?;
        *position = page.next.max(after);
        if *position >= page.last || *position == after {
            return Ok(());
        }
    }
}

/// What to tell when records between `after` and the end of the page are no longer kept. Any may be missing, not only the
/// oldest: each account loses its own.
fn trimmed(after: AuditNumber, page: &AuditPage) -> Option<String> {
    let (first, last) = (after.saturating_add(1), page.next);
    let wanted = last.saturating_sub(after);
    let missing = wanted.saturating_sub(u64::try_from(page.records.len()).unwrap_or(u64::MAX));
    (missing > 0).then(|| format!("of the {wanted} records #{first} to #{last}, {missing} are no longer kept"))
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

/// The name of the request, where there was one.
fn request(record: &AuditRecord) -> String {
    match record.request.as_str() {
        "" => String::new(),
        request => format!("  request {}", output::clean(request)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::audit::{AuditType, Deed, Outcome};

    fn record(number: AuditNumber) -> AuditRecord {
        let deed = Deed {
            kind: AuditType::Request,
            account: "ann".into(),
            address: String::new(),
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Done,
            message: String::new(),
            request: String::new(),
        };
        AuditRecord::new(number, Timestamp::default(), deed)
    }

    #[test]
    fn records_that_went_are_counted_wherever_they_were() {
        let page = |numbers: &[u64], next| {
            let records = numbers.iter().copied().map(record).collect();
            AuditPage { records, next, last: 9, first_kept: 1 }
        };
        assert_eq!(trimmed(0, &page(&[1, 2, 3], 3)), None);
        assert_eq!(trimmed(3, &page(&[], 3)), None);
        let said = "of the 5 records #4 to #8, 3 are no longer kept";
        assert_eq!(trimmed(3, &page(&[5, 8], 8)).as_deref(), Some(said));
        assert_eq!(trimmed(8, &page(&[], 9)).as_deref(), Some("of the 1 records #9 to #9, 1 are no longer kept"));
    }

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
            request: String::new(),
        };
        let line = describe(&AuditRecord::new(3, Timestamp::from_millis(1_700_000_000_123), deed));
        let account = "mal lory\\u{1b}[2J";
        assert_eq!(
            line,
            format!("2023-11-14T22:13:20.123Z  #3  login-failed  {account}  refused  wrong token  from 192.0.2.7")
        );
    }
}
