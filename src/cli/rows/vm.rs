//! VMs as tables.

use std::time::Duration;

use super::{or_none, show_labels, show_resources};
use crate::cli::list;
use crate::cli::output::{self, Table};
use crate::config::duration;
use crate::model::Timestamp;
use crate::model::condition::{ConditionState, ConditionType};
use crate::model::vm::Vm;

/// VMs, one a row.
pub(in crate::cli) fn list(vms: &[Vm], now: Timestamp, wide: bool) -> Table {
    let mut table = Table::with_titles(["Name", "Created", "Image", "Status", "Restart policy", "Assigned worker"]);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            output::ago(vm.created_at, now),
            vm.spec.image.clone(),
            list::shown_status(vm),
            format!("{} ({} restarts)", vm.spec.restart_policy, vm.restart_count),
            vm.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    if wide {
        return table.beside(more(vms));
    }
    table.giving_way("Image", &["Restart policy", "Image", "Created", "Assigned worker"])
}

fn more(vms: &[Vm]) -> Table {
    let mut table = Table::with_titles(["Ready", "CPU", "Memory", "Priority", "Labels", "UID", "Status message"]);
    for vm in vms {
        table.row([
            vm.ready.to_string(),
            amount(vm.spec.cpu, vm.assigned_cpu).unwrap_or_default(),
            amount(vm.spec.memory, vm.assigned_memory).unwrap_or_default(),
            vm.spec.priority.to_string(),
            show_labels(&vm.spec.labels),
            vm.uid.to_string(),
            vm.status_message.clone(),
        ]);
    }
    table
}

/// What was asked for, or else what the worker has given.
fn amount(asked: u64, assigned: u64) -> Option<String> {
    [asked, assigned].into_iter().find(|&amount| amount > 0).map(|amount| amount.to_string())
}

/// All about one VM.
pub(in crate::cli) fn details(vm: &Vm, now: Timestamp, wide: bool) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    let spec = &vm.spec;
    let given = |asked, assigned| amount(asked, assigned).unwrap_or_else(|| "the worker's default".to_owned());
    let any = |value: Option<String>| value.unwrap_or_else(|| "any".to_owned());
    row("Name", vm.name.to_string());
    row("Created", output::ago(vm.created_at, now));
    row("Image", spec.image.clone());
    row("Image pull policy", spec.image_pull_policy.to_string());
    row("CPU", given(spec.cpu, vm.assigned_cpu));
    row("Memory", given(spec.memory, vm.assigned_memory));
    row("Disk size", if spec.disk_size == 0 { "the image's own".into() } else { spec.disk_size.to_string() });
    row("Softnet enabled", spec.softnet().to_string());
    row("Softnet allowed CIDRs", or_none(spec.net_softnet_allow.join(", ")));
    row("Softnet blocked CIDRs", or_none(spec.net_softnet_block.join(", ")));
    row("Bridged networking interface", or_none(spec.net_bridged.clone().unwrap_or_default()));
    row("Headless mode", spec.headless.to_string());
    row("Nested virtualization", spec.nested.to_string());
    row("Status", list::shown_status(vm));
    row("Status message", or_none(vm.status_message.clone()));
    row("Assigned worker", or_none(vm.worker.as_ref().map(ToString::to_string).unwrap_or_default()));
    row("Restart policy", spec.restart_policy.to_string());
    row("Restarted", vm.restarted_at.map_or_else(|| "never".to_owned(), |then| output::ago(then, now)));
    row("Restart count", vm.restart_count.to_string());
    row("Resources", show_resources(&spec.resources));
    row("Labels", show_labels(&spec.labels));
    row("Random serial", spec.random_serial.to_string());
    let dirs: Vec<String> = spec.host_dirs.iter().map(ToString::to_string).collect();
    row("Host directories", or_none(dirs.join(", ")));
    // Only here.
    row("UID", vm.uid.to_string());
    row("Ready", vm.ready.to_string());
    row("Conditions", conditions(vm));
    row("Power state", spec.power_state.to_string());
    row("Suspendable", spec.suspendable.to_string());
    row("On unseen worker", spec.on_unseen.to_string());
    row("OS", any(spec.os.map(|os| os.to_string())));
    row("Architecture", any(spec.arch.map(|arch| arch.to_string())));
    row("Runtime", any(spec.runtime.map(|runtime| runtime.to_string())));
    row("Image FQN", vm.image_fqn.clone().unwrap_or_else(|| "not known".to_owned()));
    row("Startup script", if spec.startup_script.is_some() { "yes".into() } else { "none".into() });
    row("Generation", format!("{} (in effect: {})", vm.generation, vm.observed_generation));
    row("Boots", vm.boot.saturating_add(1).to_string());
    if wide { table.below(more_details(vm, now)) } else { table }
}

fn more_details(vm: &Vm, now: Timestamp) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    let spec = &vm.spec;
    let when = |then: Option<Timestamp>| then.map_or_else(|| "no".to_owned(), |then| output::ago(then, now));
    row("Created by", or_none(vm.created_by.as_ref().map(ToString::to_string).unwrap_or_default()));
    row("Priority", spec.priority.to_string());
    let life = Duration::from_secs(spec.ttl_s);
    row("Time to live", if life.is_zero() { "for ever".into() } else { duration::show(life) });
    row("Firmware", spec.firmware.to_string());
    row("Guest user", spec.guest_user().to_owned());
    row("SSH keys", spec.ssh_keys.len().to_string());
    row("Scheduled", when(vm.scheduled_at));
    row("Placed because", or_none(vm.placed_because.clone()));
    row("Bound to worker", or_none(vm.bound_to.as_ref().map(ToString::to_string).unwrap_or_default()));
    row("Assigned resources", show_resources(&vm.assigned));
    row("Started", when(vm.started_at));
    row("Failed", when(vm.failed_at));
    row("Quick failures", vm.quick_failures.to_string());
    row("Log lines", vm.log_lines.to_string());
    table
}

fn conditions(vm: &Vm) -> String {
    let known = vm.conditions.iter().filter(|condition| condition.kind != ConditionType::Unknown);
    let said = known.map(|one| format!("{}: {}", one.kind.as_str(), one.state == ConditionState::True));
    or_none(said.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::list::tests::vm;
    use crate::cli::output::Screen;
    use crate::model::vm::VmStatus;

    #[test]
    fn vms_are_listed_with_their_worker_and_restarts() {
        let mut placed = vm("b", VmStatus::Running);
        placed.worker = Some("mini".parse().unwrap());
        placed.restart_count = 2;
        let vms = [vm("a", VmStatus::Pending), placed];
        let text = list(&vms, Timestamp::from_millis(120_000), false).text(Screen::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "Name  Created        Image               Status   Restart policy      Assigned worker",
                "a     2 minutes ago  /images/tiny.qcow2  pending  Never (0 restarts)",
                "b     2 minutes ago  /images/tiny.qcow2  running  Never (2 restarts)  mini",
            ]
        );
        let wide = list(&vms, Timestamp::from_millis(120_000), true).text(Screen::PLAIN);
        assert!(wide.lines().zip(&lines).all(|(wide, line)| wide.starts_with(line)), "{wide}");
        assert!(wide.contains("7f1c3f2e-6d0b-4b58-9d3e-3a3a4d0f2b11"), "{wide}");
    }

    #[test]
    fn a_vm_shows_why_it_is_pending() {
        let mut vm = vm("a", VmStatus::Pending);
        vm.status_message = "no worker fits: 2 lack org.cirruslabs.memory-mib".into();
        let text = details(&vm, Timestamp::from_millis(1_000), false).text(Screen::PLAIN);
        assert!(text.contains("\nStatus message                no worker fits: 2 lack"), "{text}");
        assert!(text.contains("\nRestarted                     never\n"), "{text}");
        assert!(text.contains("\nCPU                           the worker's default\n"), "{text}");
        let wide = details(&vm, Timestamp::from_millis(1_000), true).text(Screen::PLAIN);
        assert!(wide.starts_with(&text) && wide.contains("\nTime to live                  for ever\n"), "{wide}");
    }
}
