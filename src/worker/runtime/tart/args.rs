//! The arguments of every call of `tart` and `vetu`, in the order in which the calls are made. Pure.
//!
//! Nothing that a user wrote is taken for an option: names begin with `orchard-`, images not with a dash (checked before),
//! networks are checked by `model::features`, and what else there is stands behind an equals sign.

use std::time::Duration;

use crate::model::vm::{RuntimeKind, VmSpec};
use crate::worker::runtime::CopySpec;

/// What `ip` is told to wait for the guest's address, in seconds, and how much longer it may take itself.
const IP_WAIT: u64 = 60;
const IP_SLACK: u64 = 10;
/// The same for the guest's agent: one that is there answers soon, and most guests have none.
const AGENT_WAIT: u64 = 5;

/// Fetches an image, also if there is one of that name.
pub(super) fn pull(image: &str) -> Vec<String> {
    words(&["pull", image])
}

/// Makes the VM `name`, fetching the image if it is not there.
pub(super) fn clone(image: &str, name: &str) -> Vec<String> {
    words(&["clone", image, name])
}

/// Tells an image's name by its digest.
pub(super) fn fqn(image: &str) -> Vec<String> {
    words(&["fqn", image])
}

/// The calls that configure a VM that was cloned.
pub(super) fn settings(kind: RuntimeKind, copy: &CopySpec, name: &str) -> Vec<Vec<String>> {
    let spec = &copy.spec;
    let tart = kind == RuntimeKind::Tart;
    let amount = |option: &str, value: u64| words(&["set", option, &value.to_string(), name]);
    let mut calls = vec![amount("--memory", copy.memory), amount("--cpu", copy.cpu)];
    calls.extend((spec.disk_size > 0).then(|| amount("--disk-size", spec.disk_size)));
    // Two clones with one address would share one DHCP lease, and be one machine to a bridged network.
    calls.extend(tart.then(|| words(&["set", "--random-mac", name])));
    calls.extend((tart && spec.random_serial).then(|| words(&["set", "--random-serial", name])));
    calls
}

/// Runs the VM for as long as it lives.
pub(super) fn run(kind: RuntimeKind, spec: &VmSpec, name: &str) -> Vec<String> {
    let mut args = words(&["run"]);
    if kind == RuntimeKind::Tart {
        args.extend(spec.softnet().then(|| "--net-softnet".to_owned()));
        let lists =
            [("--net-softnet-allow", &spec.net_softnet_allow), ("--net-softnet-block", &spec.net_softnet_block)];
        for (option, networks) in lists.into_iter().filter(|(_, networks)| !networks.is_empty()) {
            args.extend([option.to_owned(), networks.join(",")]);
        }
        args.extend(spec.net_bridged.as_ref().map(|interface| format!("--net-bridged={interface}")));
        let flags = [("--no-graphics", spec.headless), ("--nested", spec.nested), ("--suspendable", spec.suspendable)];
        args.extend(flags.into_iter().filter(|(_, wished)| *wished).map(|(flag, _)| flag.to_owned()));
        args.extend(spec.host_dirs.iter().map(|dir| format!("--dir={dir}")));
    }
    args.push(name.to_owned());
    args
}

/// One way to learn a guest's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) args: Vec<String>,
    pub(super) limit: Duration,
}

/// The ways to learn a guest's address, in the order in which they are tried. DHCP leases are known for guests behind this
/// host only; of one that is part of another network its agent knows, or whoever talked to it.
pub(super) fn lookups(bridged: bool, name: &str) -> Vec<Lookup> {
    let lookup = |wait: u64, resolver: Option<&str>| {
        let mut args = words(&["ip", "--wait", &wait.to_string()]);
        args.extend(resolver.into_iter().flat_map(|resolver| words(&["--resolver", resolver])));
        args.push(name.to_owned());
        Lookup { args, limit: Duration::from_secs(wait + IP_SLACK) }
    };
    match bridged {
        true => vec![lookup(AGENT_WAIT, Some("agent")), lookup(IP_WAIT, Some("arp"))],
        false => vec![lookup(IP_WAIT, None)],
    }
}

/// Asks the guest to switch off, and ends it after `grace`.
pub(super) fn stop(grace: Duration, name: &str) -> Vec<String> {
    words(&["stop", "--timeout", &grace.as_secs().to_string(), name])
}

/// Has the process of `run` write the guest's memory and end.
pub(super) fn suspend(name: &str) -> Vec<String> {
    words(&["suspend", name])
}

/// Removes a VM's disk and settings.
pub(super) fn delete(name: &str) -> Vec<String> {
    words(&["delete", name])
}

/// Tells all VMs and images there are.
pub(super) fn list() -> Vec<String> {
    words(&["list", "--format", "json"])
}

/// Removes the images that were not used for longest, until the others take no more than so many GB. VMs do not need the
/// image that they were cloned from.
pub(super) fn prune(keep_gb: u64) -> Vec<String> {
    words(&["prune", "--entries", "caches", "--space-budget", &keep_gb.to_string()])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CopyId;

    fn copy(spec: VmSpec) -> CopySpec {
        let id = CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt: 0 };
        CopySpec { id, name: "a".parse().unwrap(), spec, cpu: 4, memory: 8192 }
    }

    fn shown(kind: RuntimeKind, spec: VmSpec) -> Vec<String> {
        let copy = copy(spec);
        let mut calls = settings(kind, &copy, "N");
        calls.push(run(kind, &copy.spec, "N"));
        calls.iter().map(|call| call.join(" ")).collect()
    }

    /// Each field alone, and what it adds to the calls.
    fn fields() -> Vec<(VmSpec, &'static str)> {
        let any = VmSpec::default;
        let networks = || vec!["10.0.0.0/8".to_owned(), "1.1.1.1/32".to_owned()];
        vec![
            (VmSpec { disk_size: 50, ..any() }, "set --disk-size 50 N"),
            (VmSpec { random_serial: true, ..any() }, "set --random-serial N"),
            (VmSpec { net_softnet: true, ..any() }, "run --net-softnet N"),
            (
                VmSpec { net_softnet_allow: networks(), ..any() },
                "run --net-softnet --net-softnet-allow 10.0.0.0/8,1.1.1.1/32 N",
            ),
            (
                VmSpec { net_softnet_block: networks(), ..any() },
                "run --net-softnet --net-softnet-block 10.0.0.0/8,1.1.1.1/32 N",
            ),
            (VmSpec { net_bridged: Some("en0".into()), ..any() }, "run --net-bridged=en0 N"),
            (VmSpec { headless: true, ..any() }, "run --no-graphics N"),
            (VmSpec { nested: true, ..any() }, "run --nested N"),
            (VmSpec { suspendable: true, ..any() }, "run --suspendable N"),
            (
                VmSpec { host_dirs: vec!["a:/b:ro".parse().unwrap(), "c:https://x/y.tgz".parse().unwrap()], ..any() },
                "run --dir=a:/b:ro --dir=c:https://x/y.tgz N",
            ),
        ]
    }

    #[test]
    fn each_field_adds_its_argument_and_nothing_else() {
        let plain = ["set --memory 8192 N", "set --cpu 4 N", "set --random-mac N", "run N"];
        assert_eq!(shown(RuntimeKind::Tart, VmSpec::default()), plain);
        for (spec, added) in fields() {
            let calls = shown(RuntimeKind::Tart, spec);
            let new: Vec<&String> = calls.iter().filter(|call| !plain.contains(&call.as_str())).collect();
            assert_eq!(new, [added]);
        }
    }

    #[test]
    fn vetu_gets_no_option_that_it_does_not_know() {
        for (spec, _) in fields() {
            let calls = shown(RuntimeKind::Vetu, spec.clone());
            let mut expected = vec!["set --memory 8192 N", "set --cpu 4 N", "run N"];
            if spec.disk_size > 0 {
                expected.insert(2, "set --disk-size 50 N");
            }
            assert_eq!(calls, expected);
        }
    }

    #[test]
    fn addresses_are_asked_for_by_the_kind_of_network() {
        let shown = |bridged| lookups(bridged, "N").iter().map(|way| way.args.join(" ")).collect::<Vec<_>>();
        assert_eq!(shown(false), ["ip --wait 60 N"]);
        assert_eq!(shown(true), ["ip --wait 5 --resolver agent N", "ip --wait 60 --resolver arp N"]);
        assert!(lookups(true, "N").iter().all(|way| way.limit > Duration::from_secs(AGENT_WAIT)));
    }

    #[test]
    fn the_other_calls_are_as_the_tools_expect() {
        let calls = [pull("i"), clone("i", "N"), fqn("i"), stop(Duration::from_secs(5), "N"), suspend("N")];
        let shown: Vec<String> = calls.iter().map(|call| call.join(" ")).collect();
        assert_eq!(shown, ["pull i", "clone i N", "fqn i", "stop --timeout 5 N", "suspend N"]);
        let calls = [delete("N"), list(), prune(50)].map(|call| call.join(" "));
        assert_eq!(calls, ["delete N", "list --format json", "prune --entries caches --space-budget 50"]);
    }
}
