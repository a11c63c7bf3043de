//! How much there may be, how it is listed, and what is told of a change.

use super::*;
use crate::bus::access::{CreateAccount, CreateJoinToken, Expiry, UpdateAccount};
use crate::model::access::{Role, Roles};
use crate::model::account::{JoinId, SecretHash};
use crate::model::secret::Secret;

fn small(quota: quota::Quota) -> World {
    let mut world = World::new();
    world.cluster.usage.quota = quota;
    world
}

impl World {
    fn create_by(&mut self, by: &str, vm: &str, script: usize) -> Result<Vm, ApiError> {
        let startup_script = Some(StartupScript { script_content: "x".repeat(script), env: BTreeMap::new() });
        let spec = VmSpec { image: "img".into(), startup_script, ..VmSpec::default() };
        let uid = VmUid(self.id());
        let request = CreateVm { name: name(vm), spec, key: None };
        self.cluster.create_vm(Some(name(by)), request, uid, self.now, &mut self.changes)
    }

    fn delete(&mut self, vm: &str) {
        self.cluster.delete_vm(&name(vm), self.now, &mut self.changes).unwrap();
    }
}

#[test]
fn vms_are_bounded_in_number_over_all_and_for_each_account() {
    let mut world = small(quota::Quota { vms: 5, vms_of_one: 3, ..quota::Quota::default() });
    (0..3).for_each(|n| drop(world.create_by("ann", &format!("a{n}"), 1).unwrap()));
    let refused = world.create_by("ann", "a3", 1).unwrap_err();
    assert_eq!(refused.code, ErrorCode::LimitExceeded);
    assert!(refused.message.contains("account ann has made 3 VMs"), "{refused}");
    (0..2).for_each(|n| drop(world.create_by("bob", &format!("b{n}"), 1).unwrap()));
    let refused = world.create_by("cleo", "c0", 1).unwrap_err();
    assert!(refused.code == ErrorCode::LimitExceeded && refused.message.contains("no more than 5"), "{refused}");
    world.delete("a0");
    assert_eq!(world.create_by("cleo", "c0", 1).unwrap().created_by, Some(name("cleo")));
}

#[test]
fn vms_are_bounded_in_bytes_over_all_and_for_each_account() {
    let mut world = small(quota::Quota { bytes: 10_000, bytes_of_one: 6_000, ..quota::Quota::default() });
    world.create_by("ann", "a0", 5_000).unwrap();
    let refused = world.create_by("ann", "a1", 1_000).unwrap_err();
    assert!(refused.code == ErrorCode::LimitExceeded && refused.message.contains("6000"), "{refused}");
    world.create_by("ann", "a1", 100).unwrap();
    let refused = world.create_by("bob", "b0", 5_000).unwrap_err();
    assert!(refused.code == ErrorCode::LimitExceeded && refused.message.contains("10000"), "{refused}");
    world.delete("a0");
    world.create_by("bob", "b0", 5_000).unwrap();
    // What was counted is counted again from what is stored.
    let records = Records { vms: world.cluster.vms.values().cloned().collect(), ..Records::default() };
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.cluster.usage.quota = quota::Quota { bytes: 10_000, bytes_of_one: 6_000, ..quota::Quota::default() };
    assert!(world.create_by("bob", "b1", 1_000).is_err());
    world.delete("b0");
    world.create_by("bob", "b1", 1_000).unwrap();
}

#[test]
fn a_full_store_takes_nothing_new_and_lets_the_rest_go_on() {
    let mut world = World::new();
    let session = world.join("w", 8);
    world.create("a", VmSpec::default()).unwrap();
    let id = world.vm("a").copy_id();
    world.cluster.set_full(Some("the database is nearly full".into()));
    for refused in [
        world.create("b", VmSpec::default()).map(drop),
        world.new_account("ann").map(drop),
        world.new_token().map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::LimitExceeded, "the database is nearly full"));
    }
    let running = Observation::Running { message: String::new(), ready: true, generation: 0, image_fqn: None };
    world.report("w", session, id, running).unwrap();
    world.delete("a");
    world.report("w", session, id, Observation::Absent).unwrap();
}

#[test]
fn workers_are_listed_page_by_page() {
    let mut world = World::new();
    let names: Vec<_> = (0..10).map(|n| format!("w{n}")).collect();
    for worker in &names {
        world.join(worker, 1);
    }
    let size = crate::bus::message::encode(&world.cluster.workers(None, 1, 1).0[0]).unwrap().len();
    for (limit, bytes, most) in [(3, usize::MAX, 3), (500, 4 * size + 10, 4), (500, 1, 1)] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let (page, more) = world.cluster.workers(after.as_ref(), limit, bytes);
            assert!(page.len() <= most && (!more || page.len() == most), "{}", page.len());
            seen.extend(page.iter().map(|view| view.worker.info.name.to_string()));
            after = page.last().map(|view| view.worker.info.name.clone());
            if !more {
                break;
            }
        }
        assert_eq!(seen, names);
    }
}

impl World {
    fn new_account(&mut self, account: &str) -> Result<(), ApiError> {
        let request = CreateAccount {
            name: name(account),
            roles: Roles::from_iter([Role::ComputeRead]),
            expires_at: None,
            token: Some(Secret::new("correct-horse-battery-staple-and-more")),
            ssh_keys: Vec::new(),
        };
        self.cluster.create_account(&request, SecretHash([7; 32]), self.now, &mut self.changes).map(drop)
    }

    fn new_token(&mut self) -> Result<(), ApiError> {
        let request = CreateJoinToken { ttl_s: 3600, uses: 2, worker: Some(name("w9")) };
        let made = (JoinId::new([1; 8]), SecretHash([7; 32]));
        self.cluster.create_join_token(name("ann"), request, made, self.now, &mut self.changes).map(drop)
    }

    fn said(&mut self) -> Said {
        std::mem::take(&mut self.changes.said)
    }
}

#[test]
fn each_change_says_what_was_changed_and_no_secret() {
    let mut world = World::new();
    world.join("w", 8);
    world.new_account("ann").unwrap();
    assert_eq!(world.said().message, "roles compute:read, no end");
    let roles = Some(Roles::from_iter([Role::ComputeRead, Role::ComputeWrite]));
    let request = UpdateAccount {
        name: name("ann"),
        roles,
        expiry: Some(Expiry::At(Timestamp::from_millis(86_400_000))),
        ssh_keys: None,
    };
    world.cluster.update_account(&request, world.now, &mut world.changes).unwrap();
    let said = world.said().message;
    assert_eq!(
        said,
        "roles compute:read, compute:write, end 1970-01-02T00:00:00.000Z; before: roles compute:read, no end"
    );
    world.new_token().unwrap();
    let said = world.said();
    assert_eq!(said.target, Some(JoinId::new([1; 8]).to_string()));
    assert_eq!(said.message, "for 3600 s until 1970-01-01T01:00:00.000Z, 2 uses, worker w9 alone");
    world.cluster.rotate_account(&name("ann"), SecretHash([8; 32]), world.now, &mut world.changes).unwrap();
    assert_eq!(world.said().message, "a new token; 1 bootstrap tokens of the account end");
    world.cluster.delete_account(&name("ann"), &mut world.changes).unwrap();
    assert!(world.said().message.starts_with("it had roles compute:read, compute:write, end 1970"));
    let uid = world.create("a", VmSpec { cpu: 2, ..VmSpec::default() }).unwrap();
    assert_eq!(world.said().message, format!("uid {uid}, cores: 2, MiB: the worker's default, image img"));
    world.delete("a");
    assert_eq!(world.said().message, format!("uid {uid}, pending, on worker w"));
    let restored = name("root");
    world.cluster.restore_admin(&restored, SecretHash([1; 32]), world.now, &mut world.changes);
    assert!(world.said().message.ends_with("a new token; before: there was none"));
    world.cluster.restore_admin(&restored, SecretHash([1; 32]), world.now, &mut world.changes);
    assert_eq!(world.said(), Said::default());
    world.cluster.delete_worker(&name("w"), true, world.now, &mut world.changes).unwrap();
    assert_eq!(world.said().message, "0 VMs were placed on it, by force");
}

#[test]
fn strangers_are_told_apart_from_those_who_have_proven_who_they_are() {
    use crate::model::audit::{AuditType, Deed, Outcome};
    let mut world = World::new();
    world.new_account("ann").unwrap();
    world.join("w", 1);
    let mut stranger = |kind, account: &str, outcome| {
        let deed = Deed {
            kind,
            account: account.into(),
            address: String::new(),
            verb: String::new(),
            target: String::new(),
            outcome,
            message: String::new(),
            request: String::new(),
        };
        world.cluster.audit(deed, world.now, &mut world.changes);
        world.changes.audit.last().unwrap().stranger
    };
    let request = AuditType::Request;
    for known in ["ann", "worker/w", crate::model::audit::CONTROLLER] {
        assert!(!stranger(request, known, Outcome::Refused), "{known}");
    }
    for unknown in ["bob", "worker/other", "join/0101010101010101", "", "Ann"] {
        assert!(stranger(request, unknown, Outcome::Refused), "{unknown}");
    }
    // It deleted itself by that.
    assert!(!stranger(request, "gone", Outcome::Done));
    assert!(stranger(AuditType::LoginFailed, "ann", Outcome::Refused));
}
