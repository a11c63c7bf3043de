//! Every metric: its name, what it is, and its labels. What stands here is an interface: dashboards and alerts go by it, so
//! names are added and not changed.
//!
//! The samples of a counter end in `_total`; those of a histogram in `_bucket`, `_sum` and `_count`. Seconds and bytes are
//! named as such. What a worker tells bears the label `worker`, as several of them may be in one process.

/// What kind of figures a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What is the case now.
    Gauge,
    /// What only grows.
    Counter,
    /// How often which size.
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    /// Its name, without the endings of its samples.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says, for people.
    pub help: &'static str,
    /// What its samples are told apart by.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($(#[$section:meta])* $kind:ident $id:ident = $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $id: Family =
                Family { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*] };
        )+
        /// All of them, in the order of the page.
        pub static ALL: &[&Family] = &[$(&$id),+];
    };
}

families! {
    Gauge BUILD = "orchard_build" ["part", "version"] "The release that runs; always 1";
    Gauge STARTED = "orchard_start_time_seconds" ["part"] "When the part was started, in seconds since 1970";
    Gauge READY = "orchard_ready" ["part"] "Whether /readyz says that the part is ready: 1 or 0";

    Gauge VMS = "orchard_controller_vms" ["status"] "VMs by status: pending, running or failed";
    Gauge VMS_READY = "orchard_controller_vms_ready" [] "Running VMs whose guest answers and whose startup script is done";
    Gauge VMS_PENDING = "orchard_controller_vms_pending" ["reason"]
        "Pending VMs by what they wait for: worker (none fits), room (on the worker with their disk), preparing, pause, earlier-copy, restored, off";
    Gauge WORKERS = "orchard_controller_workers" ["state"] "Workers by state: online, unseen or gone";
    Gauge WORKERS_PAUSED = "orchard_controller_workers_paused" [] "Workers that take no new VMs as somebody paused or drained them";
    Gauge WORKERS_CONNECTABLE = "orchard_controller_workers_connectable" [] "Workers whose VMs can be reached over the tunnel now";
    Gauge WORKER_VMS = "orchard_controller_worker_vms" ["worker"] "VMs that are placed on the worker";
    Gauge WORKER_RESOURCE = "orchard_controller_worker_resource" ["worker", "resource", "type"]
        "Resources of the worker: type used is what its VMs were given, total what it offers; memory is in MiB";
    Gauge STRAYS = "orchard_controller_strays" [] "Copies on workers that the controller does not know";
    Counter PLACEMENTS = "orchard_controller_placements" [] "VMs placed on a worker";
    Histogram SCHEDULING = "orchard_controller_scheduling_time_seconds" []
        "From the request for a VM to its first placement on a worker";
    Counter EVENTS = "orchard_controller_events" ["type"] "Events of VMs and workers by type";
    Gauge EVENT_NUMBER = "orchard_controller_event_number" ["feed"] "The last number given: feed events or audit";
    Gauge PUBLISH_LAG = "orchard_controller_publish_lag" ["feed"]
        "Events, or audit records, that are stored and not published on the bus yet";

    Gauge STORE_USED = "orchard_controller_store_used_bytes" [] "Bytes of the database in use";
    Gauge STORE_MAP = "orchard_controller_store_map_bytes" [] "Bytes that the database may have; from 90 % on nothing new is taken in";
    Gauge STORE_DISK_FREE = "orchard_controller_store_disk_free_bytes" [] "Bytes free on the disk of the database";
    Histogram COMMIT = "orchard_controller_commit_seconds" [] "How long a commit to the disk took";
    Histogram COMMIT_BATCH = "orchard_controller_commit_batch" [] "Steps that were stored by one commit";
    Counter COMMIT_FAILURES = "orchard_controller_commit_failures" [] "Commits that failed; what they held was refused";
    Gauge WRITER_QUEUE = "orchard_controller_writer_queue" [] "Steps waiting for the writer of the database";
    Gauge TICKED = "orchard_controller_last_pass_age_seconds" [] "How long ago time last passed for the cluster, four times a second";

    Counter REQUESTS = "orchard_controller_requests" ["verb", "result"]
        "Requests answered, by verb (vm.create; worker.heartbeat; join) and result (ok, or the code of the error)";
    Histogram REQUEST = "orchard_controller_request_seconds" ["verb"] "From the arrival of a request to its answer";
    Gauge REQUESTS_RUNNING = "orchard_controller_requests_in_flight" [] "Requests being worked on";

    Gauge BROKER_CONNECTIONS = "orchard_broker_connections" [] "Clients connected to the embedded broker";
    Counter BROKER_ACCEPTED = "orchard_broker_accepted_connections" [] "Clients that the broker has accepted";
    Gauge BROKER_SUBSCRIPTIONS = "orchard_broker_subscriptions" [] "Subscriptions at the broker";
    Counter BROKER_MESSAGES = "orchard_broker_messages" ["direction"] "Messages by direction: in (published) or out (delivered)";
    Counter BROKER_BYTES = "orchard_broker_message_bytes" ["direction"] "Bytes of their bodies";
    Counter BROKER_SLOW = "orchard_broker_slow_consumers" [] "Clients cut off because they did not read";

    Gauge TUNNEL_OPEN = "orchard_tunnel_sessions_open" [] "Sessions into VMs and hosts that are open";
    Counter TUNNEL_SESSIONS = "orchard_tunnel_sessions" [] "Sessions that were opened";
    Counter TUNNEL_BYTES = "orchard_tunnel_bytes" ["direction"]
        "Bytes carried, counted when a session ends: direction to_vm or from_vm";
    Counter TUNNEL_RESETS = "orchard_tunnel_resets" [] "Sessions that were broken off";
    Counter TUNNEL_FAILURES = "orchard_tunnel_open_failures" [] "Sessions whose worker or guest could not be reached";
    Counter TUNNEL_REFUSALS = "orchard_tunnel_refusals" [] "Sessions, and data paths of workers, that were refused";

    Gauge WORKER_SESSION = "orchard_worker_session" ["worker"] "Whether the worker is registered with the controller: 1 or 0";
    Gauge WORKER_BUS = "orchard_worker_bus_connected" ["worker"] "Whether the worker is connected to the bus: 1 or 0";
    Gauge WORKER_COPIES = "orchard_worker_vms" ["worker", "state"]
        "VMs on the worker by state: preparing, running, stopped, failed or stray (not asked for)";
    Histogram HEARTBEAT = "orchard_worker_heartbeat_rtt_seconds" ["worker"] "From a heartbeat to the controller's answer";
    Counter HEARTBEAT_FAILURES = "orchard_worker_heartbeat_failures" ["worker"] "Heartbeats without an answer in time";
    Counter WORKER_SESSIONS = "orchard_worker_sessions" ["worker"] "Times that the worker has registered";
    Histogram RECONCILE = "orchard_worker_reconcile_seconds" ["worker"] "How long a look at the host and its VMs took";
    Counter RECONCILE_FAILURES = "orchard_worker_reconcile_failures" ["worker"] "Looks at which the runtime did not list its VMs";
    Gauge RECONCILED = "orchard_worker_last_reconcile_age_seconds" ["worker"] "How long ago the last look was over";
    Histogram RUNTIME = "orchard_worker_runtime_command_seconds" ["worker", "command"]
        "How long the runtime took, by command: list, create, start, stop, kill, suspend, delete, pull, images, prune";
    Counter RUNTIME_FAILURES = "orchard_worker_runtime_command_failures" ["worker", "command"] "Commands of the runtime that failed";
    Gauge RUNTIME_RUNNING = "orchard_worker_runtime_commands_in_flight" ["worker", "command"] "Commands of the runtime under way";
    Histogram PULL = "orchard_worker_vm_pull_time_seconds" ["worker"] "How long it took to fetch an image ahead of need";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_what_their_samples_are() {
        let mut names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for family in ALL {
            let fine = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(family.name.starts_with("orchard_") && family.name.chars().all(fine), "{}", family.name);
            for reserved in ["_total", "_bucket", "_sum", "_count", "_info", "_created"] {
                assert!(!family.name.ends_with(reserved), "{} ends in {reserved}", family.name);
            }
            assert!(!family.help.ends_with('.') && !family.help.contains('\n'), "{}", family.help);
        }
    }
}
