//! Accounts, joining and leaving, as stories.

use super::*;
use crate::bus::access::{CreateAccount, CreateJoinToken, Expiry, Join, UpdateAccount};
use crate::model::access::{Role, Roles};
use crate::model::account::{JoinId, SecretHash};
use crate::model::secret::Secret;

const ADMIN: &str = "bootstrap-admin";

fn hash(byte: u8) -> SecretHash {
    SecretHash([byte; 32])
}

fn id(byte: u8) -> JoinId {
    JoinId::new([byte; 8])
}

fn roles(of: &[Role]) -> Roles {
    of.iter().copied().collect()
}

fn request(account: &str, of: &[Role]) -> CreateAccount {
    CreateAccount { name: name(account), roles: roles(of), expires_at: None, token: None, ssh_keys: Vec::new() }
}

fn update(account: &str, of: Option<&[Role]>, expiry: Option<Expiry>) -> UpdateAccount {
    UpdateAccount { name: name(account), roles: of.map(roles), expiry, ssh_keys: None }
}

impl World {
    fn with_admin() -> Self {
        let mut world = Self::new();
        world.cluster.restore_admin(&name(ADMIN), hash(0), world.now, &mut world.changes);
        world
    }

    fn account(&mut self, account: &str, of: &[Role]) -> Result<(), ApiError> {
        let hash = hash(1);
        self.cluster.create_account(&request(account, of), hash, self.now, &mut self.changes).map(drop)
    }

    fn change(&mut self, update: &UpdateAccount) -> Result<(), ApiError> {
        self.cluster.update_account(update, self.now, &mut self.changes).map(drop)
    }

    fn token(&mut self, byte: u8, uses: u32, worker: Option<&str>) {
        let request = CreateJoinToken { ttl_s: 60, uses, worker: worker.map(name) };
        let made =
            self.cluster.create_join_token(name(ADMIN), request, (id(byte), hash(byte)), self.now, &mut self.changes);
        made.unwrap();
    }

    fn joins(&mut self, token: u8, worker: &str, key: &str, machine: &str) -> Result<(), ErrorCode> {
        let request = Join { worker: name(worker), public_key: key.into(), machine_id: machine.into() };
        let joined = self.cluster.join(&id(token), request, self.now, &mut self.changes);
        joined.map_err(|error| error.code)
    }

    fn remove(&mut self, worker: &str, force: bool) -> Result<(), ErrorCode> {
        let removed = self.cluster.delete_worker(&name(worker), force, self.now, &mut self.changes);
        self.cluster.place(self.now, &mut self.changes);
        removed.map_err(|error| error.code)
    }
}

#[test]
fn accounts_come_change_and_go() {
    let mut world = World::with_admin();
    world.account("ci", &[Role::ComputeRead]).unwrap();
    assert_eq!(world.account("ci", &[]).unwrap_err().code, ErrorCode::Conflict);
    world.changes = Changes::default();
    world.change(&update("ci", Some(&[Role::ComputeRead]), None)).unwrap();
    assert!(world.changes.is_empty(), "nothing changes nothing");
    let end = Timestamp::from_millis(9_000);
    world.change(&update("ci", Some(&[Role::ComputeWrite]), Some(Expiry::At(end)))).unwrap();
    let view = world.cluster.account(&name("ci")).unwrap();
    assert_eq!((view.roles, view.expires_at), (roles(&[Role::ComputeWrite]), Some(end)));
    world.change(&update("ci", None, Some(Expiry::Never))).unwrap();
    assert_eq!(world.cluster.account(&name("ci")).unwrap().expires_at, None);
    world.cluster.rotate_account(&name("ci"), hash(9), world.now, &mut world.changes).unwrap();
    assert_eq!(world.cluster.account_record(&name("ci")).unwrap().token_hash, hash(9));
    assert_eq!(world.changes.accounts, [name("ci")].into());
    world.cluster.delete_account(&name("ci"), &mut world.changes).unwrap();
    for refused in [
        world.cluster.delete_account(&name("ci"), &mut world.changes),
        world.change(&update("ci", None, None)),
        world.cluster.rotate_account(&name("ci"), hash(9), world.now, &mut world.changes).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
    }
}

#[test]
fn tokens_chosen_by_hand_and_ends_must_make_sense() {
    let mut world = World::with_admin();
    world.now = at(5_000);
    let token = |text: String| CreateAccount { token: Some(Secret::new(text)), ..request("a", &[]) };
    let over = CreateAccount { expires_at: Some(Timestamp::from_millis(5_000)), ..request("a", &[]) };
    for bad in [token("short".into()), token("x ".repeat(20)), token("ä".repeat(40)), token("x".repeat(2000)), over] {
        let refused = world.cluster.create_account(&bad, hash(1), world.now, &mut world.changes);
        assert_eq!(refused.unwrap_err().code, ErrorCode::Invalid, "{bad:?}");
    }
    world.cluster.create_account(&token("x".repeat(32)), hash(1), world.now, &mut world.changes).unwrap();
    let past = update("a", None, Some(Expiry::At(Timestamp::from_millis(4_999))));
    assert_eq!(world.change(&past).unwrap_err().code, ErrorCode::Invalid);
}

#[test]
fn somebody_can_always_manage_accounts() {
    let mut world = World::with_admin();
    let end = Expiry::At(Timestamp::from_millis(1_000_000));
    let locked_out = |world: &mut World| {
        let refused = [
            world.cluster.delete_account(&name(ADMIN), &mut world.changes),
            world.change(&update(ADMIN, Some(&[Role::AdminRead]), None)),
            world.change(&update(ADMIN, None, Some(end))),
        ];
        refused.iter().all(|refused| refused.as_ref().is_err_and(|error| error.code == ErrorCode::Conflict))
    };
    assert!(locked_out(&mut world));
    world.account("reader", &[Role::ComputeRead, Role::AdminRead]).unwrap();
    let ending =
        CreateAccount { expires_at: Some(Timestamp::from_millis(99_000)), ..request("b", &[Role::AdminWrite]) };
    world.cluster.create_account(&ending, hash(1), world.now, &mut world.changes).unwrap();
    assert!(locked_out(&mut world), "one that ends does not count");
    world.account("second", &[Role::AdminWrite]).unwrap();
    world.cluster.delete_account(&name(ADMIN), &mut world.changes).unwrap();
    let refused = world.change(&update("second", Some(&[]), None));
    assert_eq!(refused.unwrap_err().code, ErrorCode::Conflict);
}

#[test]
fn the_first_account_is_restored_whatever_became_of_it() {
    let mut world = World::with_admin();
    world.account("second", &[Role::AdminWrite]).unwrap();
    world.change(&update(ADMIN, Some(&[]), None)).unwrap();
    world.changes = Changes::default();
    world.cluster.restore_admin(&name(ADMIN), hash(7), world.now, &mut world.changes);
    let account = world.cluster.account_record(&name(ADMIN)).unwrap();
    assert_eq!((&account.view.roles, account.token_hash), (&Roles::all(), hash(7)));
    assert!(!world.changes.is_empty());
    world.changes = Changes::default();
    world.cluster.restore_admin(&name(ADMIN), hash(7), world.now, &mut world.changes);
    assert!(world.changes.is_empty());
}

#[test]
fn accounts_are_listed_in_pages() {
    let mut world = World::new();
    for account in ["c", "a", "b"] {
        world.account(account, &[]).unwrap();
    }
    let page = |after: Option<&str>, limit| {
        let (views, more) = world.cluster.accounts(after.map(name).as_ref(), limit);
        (views.iter().map(|view| view.name.as_str()).collect::<String>(), more)
    };
    assert_eq!(page(None, 2), ("ab".to_owned(), true));
    assert_eq!(page(Some("b"), 2), ("c".to_owned(), false));
    assert_eq!(page(None, 3), ("abc".to_owned(), false));
}

#[test]
fn a_token_lets_as_many_machines_join_as_it_says_and_the_same_one_again() {
    let mut world = World::new();
    world.token(1, 2, None);
    world.joins(1, "w", "K1", "m1").unwrap();
    world.joins(1, "w", "K1", "m1").unwrap();
    world.joins(1, "v", "K2", "m2").unwrap();
    assert_eq!(world.joins(1, "u", "K3", "m3"), Err(ErrorCode::LimitExceeded));
    world.joins(1, "v", "K2", "m2").unwrap();
    assert_eq!(world.cluster.key_record(&name("w")).unwrap().public_key, "K1");
    assert_eq!(world.changes.keys, [name("v"), name("w")].into());
}

#[test]
fn a_token_that_is_over_lets_nobody_join_and_is_forgotten() {
    let mut world = World::new();
    world.token(1, 5, None);
    world.joins(1, "w", "K1", "m1").unwrap();
    world.now = at(60_000);
    assert_eq!(world.joins(1, "w", "K1", "m1"), Err(ErrorCode::Unauthenticated));
    assert_eq!(world.joins(9, "w", "K1", "m1"), Err(ErrorCode::Unauthenticated), "one that never was");
    world.changes = Changes::default();
    world.pass(1);
    assert!(world.cluster.join_record(&id(1)).is_none());
    assert_eq!(world.changes.joins, [id(1)].into());
}

#[test]
fn a_name_is_one_machines_until_it_is_deleted_or_a_token_was_made_for_it() {
    let mut world = World::new();
    world.token(1, 9, None);
    world.joins(1, "w", "K1", "w").unwrap();
    world.join("w", 4);
    assert_eq!(world.joins(1, "w", "K2", "w"), Err(ErrorCode::Conflict), "same machine, other key, any token");
    assert_eq!(world.joins(1, "v", "K1", "w"), Err(ErrorCode::Conflict), "one key is one worker");
    world.token(2, 9, Some("w"));
    assert_eq!(world.joins(2, "v", "K3", "m"), Err(ErrorCode::Forbidden));
    assert_eq!(
        world.joins(2, "w", "K3", "stranger"),
        Err(ErrorCode::Conflict),
        "another machine may not take VMs over"
    );
    world.joins(2, "w", "K3", "w").unwrap();
    assert!(world.cluster.assignment(&name("w")).is_none(), "the session of the old key is over");
    world.joins(1, "v", "K1", "m").unwrap();
    world.remove("w", false).unwrap();
    world.joins(1, "w", "K4", "stranger").unwrap();
}

#[test]
fn a_token_that_is_used_up_is_over_once_its_last_machine_may_have_asked_again() {
    let mut world = World::new();
    let request = CreateJoinToken { ttl_s: 86_400, uses: 1, worker: None };
    world.cluster.create_join_token(name(ADMIN), request, (id(1), hash(1)), world.now, &mut world.changes).unwrap();
    world.now = at(10_000);
    world.joins(1, "w", "K1", "m1").unwrap();
    world.now = at(129_000);
    world.pass(1);
    world.joins(1, "w", "K1", "m1").unwrap();
    assert_eq!(world.joins(1, "v", "K2", "m2"), Err(ErrorCode::LimitExceeded), "nobody else");
    world.changes = Changes::default();
    world.now = at(130_000);
    assert_eq!(world.joins(1, "w", "K1", "m1"), Err(ErrorCode::Unauthenticated));
    world.pass(1);
    assert!(world.cluster.join_record(&id(1)).is_none());
    assert_eq!(world.changes.joins, [id(1)].into());
    assert!(world.cluster.key_record(&name("w")).is_some(), "who has joined stays");
}

#[test]
fn tokens_are_listed_without_their_secrets_and_taken_back_by_id() {
    let mut world = World::new();
    world.token(2, 3, Some("w"));
    world.token(1, 2, None);
    world.joins(1, "v", "K1", "m1").unwrap();
    let page = |world: &World, after: Option<JoinId>, limit| {
        let (tokens, more) = world.cluster.join_tokens(after.as_ref(), limit);
        (tokens.into_iter().map(|token| (token.id, token.uses_left, token.worker)).collect::<Vec<_>>(), more)
    };
    assert_eq!(page(&world, None, 1), (vec![(id(1), 1, None)], true));
    assert_eq!(page(&world, Some(id(1)), 9), (vec![(id(2), 3, Some(name("w")))], false));
    world.changes = Changes::default();
    world.cluster.delete_join_token(&id(1), &mut world.changes).unwrap();
    assert_eq!(world.changes.joins, [id(1)].into());
    assert_eq!(world.joins(1, "v", "K1", "m1"), Err(ErrorCode::Unauthenticated));
    let again = world.cluster.delete_join_token(&id(1), &mut world.changes);
    assert_eq!(again.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(page(&world, None, 9).0.len(), 1);
}

#[test]
fn what_a_join_token_may_be_is_bounded() {
    let mut world = World::new();
    for (ttl_s, uses) in [(0, 1), (1, 0), (u64::MAX, 1), (1, u32::MAX)] {
        let request = CreateJoinToken { ttl_s, uses, worker: None };
        let refused =
            world.cluster.create_join_token(name(ADMIN), request, (id(1), hash(1)), world.now, &mut world.changes);
        assert_eq!(refused.unwrap_err().code, ErrorCode::Invalid);
    }
    world.token(1, 1, None);
    assert_eq!(world.joins(1, "w", "K1", &"m".repeat(300)), Err(ErrorCode::Invalid));
}

#[test]
fn a_worker_is_taken_out_only_without_vms_unless_they_are_given_up() {
    let mut world = World::new();
    world.token(1, 9, None);
    world.joins(1, "w", "K1", "w").unwrap();
    let session = world.join("w", 4);
    let again = VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() };
    let a = world.create("a", again).unwrap();
    let b = world.create("b", VmSpec::default()).unwrap();
    let gone = world.create("gone", VmSpec::default()).unwrap();
    world.report("w", session, CopyId { uid: a, attempt: 0 }, running()).unwrap();
    world.cluster.delete_vm(&name("gone"), world.now, &mut world.changes).unwrap();
    world.join("v", 4);
    assert_eq!(world.remove("w", false), Err(ErrorCode::Conflict));
    assert!(world.cluster.key_record(&name("w")).is_some(), "a refusal changes nothing");
    world.changes.assign.clear();
    world.remove("w", true).unwrap();

    let (a_now, b_now) = (world.vm("a"), world.vm("b"));
    assert_eq!((a_now.worker, a_now.restart_count), (Some(name("v")), 1));
    assert_eq!((b_now.status, b_now.worker), (VmStatus::Failed, None));
    assert!(b_now.status_message.contains("worker w"), "{}", b_now.status_message);
    assert_eq!(world.wants("v"), [(CopyId { uid: a, attempt: 1 }, "run")]);
    assert!(world.cluster.leaving.is_empty());
    let of_gone =
        |event: &&crate::model::event::Event| matches!(event.object, EventObject::Vm { uid, .. } if uid == gone);
    assert_eq!(world.changes.events.iter().rev().find(of_gone).unwrap().kind, EventType::Deleted);
    assert!(world.cluster.worker_record(&name("w")).is_none() && world.cluster.key_record(&name("w")).is_none());
    assert_eq!(world.changes.assign, [name("v")].into());
    for copy in [CopyId { uid: a, attempt: 0 }, CopyId { uid: b, attempt: 0 }] {
        let late = world.report("w", session, copy, running());
        assert_eq!(late.unwrap_err().code, ErrorCode::Unauthenticated);
    }
    // What failed for good can still be deleted, at once.
    world.cluster.delete_vm(&name("b"), world.now, &mut world.changes).unwrap();
    assert_eq!(world.changes.events.last().unwrap().kind, EventType::Deleted);
    assert_eq!(world.remove("w", true), Err(ErrorCode::NotFound));
}

#[test]
fn a_worker_that_joined_and_never_came_can_be_taken_out() {
    let mut world = World::new();
    world.token(1, 1, None);
    world.joins(1, "w", "K1", "m").unwrap();
    world.remove("w", false).unwrap();
    assert!(world.cluster.key_record(&name("w")).is_none());
}

#[test]
fn a_role_of_a_newer_release_cannot_be_given() {
    let mut world = World::with_admin();
    assert_eq!(world.account("ci", &[Role::ComputeRead, Role::Unknown]).unwrap_err().code, ErrorCode::Invalid);
    world.account("ci", &[Role::ComputeRead]).unwrap();
    let refused = world.change(&update("ci", Some(&[Role::Unknown]), None)).unwrap_err();
    assert!(refused.code == ErrorCode::Invalid && refused.message.contains("compute:read"), "{refused}");
    assert_eq!(world.cluster.account(&name("ci")).unwrap().roles, roles(&[Role::ComputeRead]));
}
