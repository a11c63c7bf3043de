//! `orchard controller status`: how the controller is doing, for its operator.

use std::collections::BTreeMap;

use clap::Args;

use super::client::Client;
use super::output::{self, DataArgs, Table};
use crate::bus::status::{ControllerStatus, FeedStatus, GetStatus};
use crate::model::{Clock, Timestamp};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard controller status
  orchard controller status -o json | jq -r '.warnings[]'

Needs the role admin:read. The same figures, and more, are at --listen-metrics of `orchard controller run`.")]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    output: DataArgs,
}

pub(super) async fn run(arguments: StatusArgs, client: &Client) -> anyhow::Result<()> {
    let status = client.call(&GetStatus {}).await?;
    let now = Clock::start().now().wall;
    arguments.output.item(&status, |status, _| table(status, now))?;
    if !arguments.output.format().is_data() {
        for warning in &status.warnings {
            output::line(&format!("WARNING: {}", output::clean(warning)))?;
        }
    }
    Ok(())
}

fn table(status: &ControllerStatus, now: Timestamp) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("Version", status.version.clone());
    row("Started", format!("{} ({})", status.started, output::ago(status.started, now)));
    let store = &status.store;
    row("Store", format!("{} of {} in use, schema {}", size(store.used_bytes), size(store.map_bytes), store.schema));
    if let (Some(free), Some(all)) = (store.disk_free_bytes, store.disk_bytes) {
        row("Disk", format!("{} of {} free", size(free), size(all)));
    }
    let slowest = |us: Option<u64>| us.map_or_else(String::new, |us| format!(", 99 % within {}", millis(us)));
    let failed = |count: u64| if count == 0 { String::new() } else { format!(", {count} failed") };
    row("Commits", format!("{}{}{}", store.commits, slowest(store.commit_p99_us), failed(store.commit_failures)));
    row("Events", feed(status.events));
    row("Audit records", feed(status.audit));
    row("VMs", counts(&status.vms));
    row("Pending for", counts(&status.scheduler.pending));
    let workers = &status.workers;
    let mut told = counts(&workers.states);
    told += &format!("; {} connectable, {} paused", workers.connectable, workers.paused);
    row("Workers", told);
    let scheduler = &status.scheduler;
    let last = scheduler.last_placement.map_or_else(String::new, |at| format!(", the last {}", output::ago(at, now)));
    row("Scheduler", format!("last pass {} ms ago; {} VMs placed{last}", scheduler.last_pass_ms, scheduler.placements));
    let queues = status.queues;
    let waiting =
        format!("{} of {} steps for the store, {} requests", queues.writer, queues.writer_capacity, queues.requests);
    row("Under way", waiting);
    let requests = status.requests;
    row("Requests", format!("{}{}{}", requests.answered, slowest(requests.p99_us), failed(requests.failed)));
    row(
        "Broker",
        match &status.broker {
            None => "an outside NATS server".to_owned(),
            Some(broker) => format!(
                "{} connections, {} subscriptions, {} messages in, {} out, {} clients cut off",
                broker.connections,
                broker.subscriptions,
                broker.messages_in,
                broker.messages_out,
                broker.slow_consumers
            ),
        },
    );
    let tunnel = status.tunnel;
    let sessions = format!(
        "{} open, {} opened, {} broken off{}",
        tunnel.open,
        tunnel.opened,
        tunnel.broken,
        failed(tunnel.failed)
    );
    row("Sessions", sessions);
    table
}

fn feed(feed: FeedStatus) -> String {
    let kept = match (feed.first, feed.last) {
        (0, _) => "none kept".to_owned(),
        (first, last) => format!("#{first} to #{last}"),
    };
    let behind =
        if feed.unpublished == 0 { String::new() } else { format!(", {} not published yet", feed.unpublished) };
    kept + &behind
}

/// What there is of each, without those of which there is nothing.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let some = counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{count} {name}"));
    let some = some.collect::<Vec<_>>().join(", ");
    if some.is_empty() { "none".to_owned() } else { some }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=0xF_FFFF => format!("{} KiB", bytes >> 10),
        0x10_0000..=0x3FFF_FFFF => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

fn millis(us: u64) -> String {
    format!("{} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_shown_and_nothing_is_said_of_what_there_is_not() {
        let feed_of = |first, last, unpublished| feed(FeedStatus { first, last, unpublished });
        assert_eq!((feed_of(0, 0, 0), feed_of(3, 9, 2)), ("none kept".into(), "#3 to #9, 2 not published yet".into()));
        let all = [("failed".to_owned(), 0), ("running".to_owned(), 2)].into();
        assert_eq!((counts(&all), counts(&BTreeMap::new())), ("2 running".into(), "none".into()));
        assert_eq!((size(2_048), size(3 << 20), size(3 << 29)), ("2 KiB".into(), "3 MiB".into(), "1.5 GiB".into()));
        assert_eq!(millis(2_500), "2.5 ms");
    }
}
