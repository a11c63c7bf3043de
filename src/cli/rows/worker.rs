//! Workers as tables.

use std::time::Duration;

use super::{or_none, or_unknown, show_labels, show_resources};
use crate::cli::list;
use crate::cli::output::{self, Table};
use crate::config::duration;
use crate::model::Timestamp;
use crate::model::worker::{DataPath, Drain, WorkerView};

/// Workers, one a row.
pub(in crate::cli) fn list(workers: &[WorkerView], now: Timestamp, wide: bool) -> Table {
    let mut table = Table::with_titles([
        "Name",
        "Last seen",
        "Scheduling paused",
        "State",
        "VMs",
        "CPU",
        "Memory available",
        "Disk free",
    ]);
    for view in workers {
        let load = view.load.unwrap_or_default();
        table.row([
            view.worker.info.name.to_string(),
            list::last_seen(view, now),
            view.worker.scheduling_paused.to_string(),
            list::state(view),
            view.vms.to_string(),
            load.cpu_permille.map(list::percent).unwrap_or_default(),
            load.memory_available_mib.map(list::gib).unwrap_or_default(),
            load.disk_free_mib.map(list::gib).unwrap_or_default(),
        ]);
    }
    if wide { table.beside(more(workers)) } else { table }
}

fn more(workers: &[WorkerView]) -> Table {
    let mut table =
        Table::with_titles(["Host", "Runtime", "Version", "Strays", "Labels", "Resources", "Resources in use"]);
    for view in workers {
        let info = &view.worker.info;
        table.row([
            format!("{}/{}", info.os, info.arch),
            info.runtime.to_string(),
            info.version.clone(),
            view.strays.to_string(),
            show_labels(&info.labels),
            show_resources(&info.resources),
            show_resources(&view.used),
        ]);
    }
    table
}

/// All about one worker.
pub(in crate::cli) fn details(view: &WorkerView, now: Timestamp, wide: bool) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    let info = &view.worker.info;
    row("Name", info.name.to_string());
    row("Created", output::ago(view.worker.created_at, now));
    row("Last seen", list::last_seen(view, now));
    row("Machine ID", info.machine_id.clone());
    row("Scheduling paused", view.worker.scheduling_paused.to_string());
    row("Default CPU", info.default_cpu.to_string());
    row("Default memory", info.default_memory.to_string());
    row("Resources", show_resources(&info.resources));
    row("Labels", show_labels(&info.labels));
    // Only here.
    row("State", list::state(view));
    row("Connectable", connectable(view));
    if let Some(path) = &view.path {
        row("Data path", data_path(path));
    }
    if let Some(drain) = &view.worker.drain {
        row("Drained since", drain_of(drain, now));
    }
    row("Host", format!("{} {}", info.os, info.arch));
    row("Runtime", info.runtime.to_string());
    row("Version", or_none(info.version.clone()));
    row("VMs", view.vms.to_string());
    row("Resources in use", show_resources(&view.used));
    let load = view.load.unwrap_or_default();
    row("CPU in use", or_unknown(load.cpu_permille.map(list::percent)));
    row("Memory available", of_all(load.memory_available_mib, load.memory_mib));
    row("Disk free", of_all(load.disk_free_mib, load.disk_mib));
    let hint = if view.strays == 0 { "" } else { " (`orchard list strays` shows them)" };
    row("Stray copies", format!("{}{hint}", view.strays));
    if wide {
        let lease = Duration::from_millis(view.worker.lease_ms);
        row("Longest lease", if lease.is_zero() { "the controller's".to_owned() } else { duration::show(lease) });
    }
    table
}

/// Whether SSH and ports of its VMs can be reached; a heartbeat alone proves nothing of that.
fn connectable(view: &WorkerView) -> String {
    match view.connectable {
        true => "yes".to_owned(),
        false if view.not_connectable_because.is_empty() => "no".to_owned(),
        false => format!("no: {}", view.not_connectable_because),
    }
}

fn data_path(path: &DataPath) -> String {
    let DataPath { address, rtt_us, sent, lost, age_s, answered_s, connects } = path;
    let ago = |seconds: u64| duration::show(Duration::from_secs(seconds));
    let rtt = format!("{}.{} ms", rtt_us / 1_000, rtt_us % 1_000 / 100);
    // A connection that has sent nothing has lost nothing.
    let lost = list::percent(lost.saturating_mul(1_000).checked_div(*sent).unwrap_or(0));
    let answered = answered_s.map_or("it has not answered yet".to_owned(), |s| format!("it answered {} ago", ago(s)));
    let often = if *connects > 1 { format!(", connected {connects} times") } else { String::new() };
    format!("from {address}, round trip {rtt}, {lost} of packets lost, for {}{often}; {answered}", ago(*age_s))
}

/// What is left of something, in MiB.
fn of_all(left: Option<u64>, all: Option<u64>) -> String {
    or_unknown(left.zip(all).map(|(left, all)| format!("{} of {}", list::gib(left), list::gib(all))))
}

fn drain_of(drain: &Drain, now: Timestamp) -> String {
    let so_far = if drain.done { "nothing runs there any more" } else { "VMs run there still" };
    let deadline = match drain.deadline_s {
        Some(seconds) => {
            format!("those left are moved {} after its beginning", duration::show(Duration::from_secs(seconds)))
        }
        None => "those left are waited for".to_owned(),
    };
    format!("{}; {so_far}; {deadline}", output::ago(drain.began, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::list::tests::worker;
    use crate::cli::output::Screen;
    use crate::model::worker::WorkerState;

    fn shown(view: &WorkerView) -> String {
        details(view, Timestamp::from_millis(60_000), false).text(Screen::PLAIN)
    }

    #[test]
    fn workers_are_listed_with_their_liveness() {
        let mut lost = worker("b");
        lost.state = WorkerState::Unseen;
        (lost.last_seen, lost.load) = (None, None);
        let workers = [worker("a"), lost];
        let text = list(&workers, Timestamp::from_millis(60_000), false).text(Screen::PLAIN);
        assert!(text.contains("a     5 seconds ago"), "{text}");
        assert!(text.contains("not since the controller started  false              unseen  2"), "{text}");
        assert!(text.contains("2    37.5 %  11.7 GiB          195.3 GiB"), "{text}");
        let wide = list(&workers, Timestamp::from_millis(60_000), true).text(Screen::PLAIN);
        assert!(wide.contains("195.3 GiB  linux/amd64  qemu     ") && wide.contains("role: ci"), "{wide}");
    }

    #[test]
    fn a_worker_shows_its_default_memory() {
        let text = shown(&worker("w"));
        assert!(text.contains("Default memory     8192"), "{text}");
        assert!(text.contains("Labels             role: ci"), "{text}");
        assert!(text.contains("Disk free          195.3 GiB of 488.2 GiB"), "{text}");
    }

    #[test]
    fn a_worker_shows_its_data_path_or_why_there_is_none() {
        let path = DataPath {
            address: "192.0.2.7:4711".into(),
            rtt_us: 12_340,
            sent: 2_000,
            lost: 3,
            age_s: 90,
            answered_s: Some(4),
            connects: 2,
        };
        let text = shown(&WorkerView { path: Some(path), ..worker("w") });
        assert!(text.contains("Connectable        yes\n"), "{text}");
        let shown_path = "from 192.0.2.7:4711, round trip 12.3 ms, 0.1 % of packets lost, for 1m30s, connected 2 times; it \
                          answered 4s ago";
        assert!(text.contains(shown_path), "{text}");
        let silent = WorkerView { connectable: false, not_connectable_because: "UDP is blocked".into(), ..worker("w") };
        let text = shown(&silent);
        assert!(text.contains("no: UDP is blocked") && text.contains("online, not connectable"), "{text}");
    }
}
