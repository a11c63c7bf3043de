//! Logins and what becomes of them, without a broker.

use std::net::SocketAddr;

use super::*;
use crate::bus::access::{CreateAccount, CreateJoinToken, Expiry, Join, UpdateAccount};
use crate::controller::cluster::{Changes, Cluster, Records, Timing};
use crate::identity::{hash_of, new_token};
use crate::model::Now;
use crate::model::access::{Role, Roles};
use crate::model::account::JoinId;

struct World {
    cluster: Cluster,
    access: Arc<AccessView>,
    users: BusUsers,
    token: Secret,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        let clock = Clock::start();
        let cluster = Cluster::load(Records::default(), Timing::default(), clock.now());
        let access = Arc::new(AccessView::of(&cluster));
        let users = BusUsers::new(access.clone(), clock, Secret::new("own"));
        let mut world = Self { cluster, access, users, token: new_token(), clock };
        let token = hash_of(world.token.expose());
        world.change(|cluster, now, changes| cluster.restore_admin(&"admin".parse().unwrap(), token, now, changes));
        world.change(|cluster, now, changes| {
            let roles: Roles = [Role::ComputeRead].into_iter().collect();
            let request = CreateAccount {
                name: "ci".parse().unwrap(),
                roles,
                expires_at: None,
                token: None,
                ssh_keys: Vec::new(),
            };
            cluster.create_account(&request, token, now, changes).unwrap()
        });
        world
    }

    fn change<T>(&mut self, work: impl FnOnce(&mut Cluster, Now, &mut Changes) -> T) -> T {
        let mut changes = Changes::default();
        let done = work(&mut self.cluster, self.clock.now(), &mut changes);
        self.access.renew(&self.cluster, &changes);
        done
    }

    fn login(&self, user: &str, password: &str, from: &str) -> Option<User> {
        self.try_login(user, password, from).ok()
    }

    fn try_login(&self, user: &str, password: &str, from: &str) -> Result<User, Denied> {
        let peer: SocketAddr = format!("{from}:1").parse().unwrap();
        let credentials = Credentials {
            user: Some(user),
            password: Some(password),
            token: None,
            nkey: None,
            sig: None,
            jwt: None,
            nonce: Some("n"),
            peer,
        };
        self.users.authenticate(&credentials)
    }

    fn ci(&self) -> Option<User> {
        self.login("ci", self.token.expose(), "192.0.2.1")
    }
}

#[test]
fn only_the_right_token_opens_and_only_the_accounts_own_subjects() {
    let world = World::new();
    let user = world.ci().unwrap();
    assert!(user.permissions.may_publish(b"orchard.v1.api.ci.vm.list"));
    assert!(!user.permissions.may_publish(b"orchard.v1.api.ci.vm.create"));
    let shown = user.credential.unwrap();
    assert!(!shown.expose().contains(world.token.expose()), "the token itself is kept nowhere");
    for (user, password) in [
        ("ci", "wrong"),
        ("ci", ""),
        ("nobody", world.token.expose()),
        ("", ""),
        ("..", world.token.expose()),
        ("worker/w", world.token.expose()),
        ("join/0000000000000000", world.token.expose()),
        (CONTROLLER_USER, world.token.expose()),
    ] {
        assert!(world.login(user, password, "192.0.2.9").is_none(), "{user:?}");
    }
    assert!(world.login(CONTROLLER_USER, "own", "127.0.0.1").is_some());
}

#[test]
fn what_changes_holds_for_those_who_are_here_already() {
    let mut world = World::new();
    let user = world.ci().unwrap();
    assert_eq!(world.users.current(&user).as_ref(), Some(&user));
    let update =
        |roles: Option<Roles>, expiry| UpdateAccount { name: "ci".parse().unwrap(), roles, expiry, ssh_keys: None };
    let more = update(Some(Roles::all()), None);
    world.change(|cluster, now, changes| cluster.update_account(&more, now, changes).unwrap());
    assert!(world.users.current(&user).unwrap().permissions.may_publish(b"orchard.v1.api.ci.vm.create"));
    let end = Timestamp::from_millis(world.clock.now().wall.as_millis() + 3_600_000);
    let ends = update(None, Some(Expiry::At(end)));
    world.change(|cluster, now, changes| cluster.update_account(&ends, now, changes).unwrap());
    assert_eq!(world.users.current(&user).unwrap().expires, Some(system_time(end)));
    let other = hash_of("another token");
    world.change(|cluster, now, changes| cluster.rotate_account(&"ci".parse().unwrap(), other, now, changes).unwrap());
    assert_eq!(world.users.current(&user), None, "a token that was changed lets nobody stay");
    let user = world.login("ci", "another token", "192.0.2.1").unwrap();
    world.change(|cluster, _, changes| cluster.delete_account(&"ci".parse().unwrap(), changes).unwrap());
    assert_eq!(world.users.current(&user), None);
}

#[test]
fn a_worker_is_let_in_by_its_key_for_as_long_as_that_is_its_key() {
    let mut world = World::new();
    let id = JoinId::new([3; 8]);
    let secret = new_token();
    let pair = nkeys::KeyPair::new_user();
    let request = CreateJoinToken { ttl_s: 60, uses: 1, worker: None };
    let made = (id.clone(), hash_of(secret.expose()));
    world.change(|cluster, now, changes| {
        cluster.create_join_token("admin".parse().unwrap(), request, made, now, changes).unwrap()
    });
    let joining = world.login("join/0303030303030303", secret.expose(), "192.0.2.1").unwrap();
    assert!(joining.expires.is_some() && world.users.current(&joining).is_some());
    let join = Join { worker: "w".parse().unwrap(), public_key: pair.public_key(), machine_id: "m".into() };
    world.change(|cluster, now, changes| cluster.join(&id, join, now, changes).unwrap());
    // Used up: who is here must go, who comes anew has a moment to repeat what was asked.
    assert_eq!(world.users.current(&joining), None);
    let repeating = world.login("join/0303030303030303", secret.expose(), "192.0.2.1").unwrap();
    assert!(repeating.expires <= joining.expires);
    world.change(|cluster, _, changes| cluster.delete_join_token(&id, changes).unwrap());
    assert!(world.login("join/0303030303030303", secret.expose(), "192.0.2.1").is_none());

    let sign = |nonce: &str| data_encoding::BASE64URL_NOPAD.encode(&pair.sign(nonce.as_bytes()).unwrap());
    let (key, sig) = (pair.public_key(), sign("n"));
    let credentials = |user| Credentials {
        user,
        password: None,
        token: None,
        nkey: Some(&key),
        sig: Some(&sig),
        jwt: None,
        nonce: Some("n"),
        peer: ([192, 0, 2, 1], 1).into(),
    };
    let user = world.users.authenticate(&credentials(Some("admin"))).unwrap();
    assert_eq!(user.name, "worker/w", "the key says who it is, not the name beside it");
    assert!(!user.permissions.may_publish(b"orchard.v1.api.admin.vm.list"));
    assert_eq!(world.users.current(&user).as_ref(), Some(&user));
    world.change(|cluster, now, changes| cluster.delete_worker(&"w".parse().unwrap(), false, now, changes).unwrap());
    assert_eq!(world.users.current(&user), None);
    assert!(world.users.authenticate(&credentials(None)).is_err());
}

#[test]
fn guessing_is_slowed_down_for_this_address_and_account_alone() {
    let world = World::new();
    let guess = |user| world.try_login(user, "guess", "192.0.2.66").unwrap_err();
    for _ in 0..10 {
        for (user, known) in [("ci", true), ("made-up", false)] {
            let denied = guess(user);
            assert!(denied.delay.is_zero() && !denied.quiet && denied.known == known, "{denied:?}");
        }
    }
    for user in ["ci", "made-up", "made-up too"] {
        let denied = guess(user);
        assert!(denied.delay == PENALTY && denied.quiet, "{denied:?}");
    }
    let elsewhere = world.try_login("ci", "guess", "192.0.2.67").unwrap_err();
    assert!(elsewhere.delay.is_zero() && !elsewhere.quiet);
    for user in ["ci", "admin"] {
        let right = world.login(user, world.token.expose(), "192.0.2.66");
        assert!(right.is_some(), "who has the right token is let in, whatever a neighbour does");
    }
}

#[test]
fn a_key_that_nobody_has_is_counted_too() {
    let world = World::new();
    let credentials = Credentials {
        user: None,
        password: None,
        token: None,
        nkey: Some("U"),
        sig: Some("x"),
        jwt: None,
        nonce: Some("n"),
        peer: ([192, 0, 2, 1], 1).into(),
    };
    let mut all: Vec<Denied> = (0..11).map(|_| world.users.authenticate(&credentials).unwrap_err()).collect();
    let late = all.pop().unwrap();
    assert!(late.delay == PENALTY && late.quiet);
}

#[test]
fn a_long_name_is_cut_and_a_strange_one_escaped() {
    let world = World::new();
    let denied = world.try_login(&format!("a\r\n{}", "x".repeat(4_000)), "guess", "192.0.2.1").unwrap_err();
    assert!(denied.reason.len() < 200 && !denied.reason.contains(char::is_control), "{denied}");
}

#[test]
fn all_connections_of_a_user_have_one_pace_and_the_controller_has_none() {
    let world = World::new();
    let (one, two) = (world.ci().unwrap(), world.ci().unwrap());
    assert!(one.pace.is_some() && one.pace == two.pace && world.users.current(&one).unwrap().pace == one.pace);
    assert_ne!(world.login("admin", world.token.expose(), "192.0.2.1").unwrap().pace, one.pace);
    let controller = world.login(CONTROLLER_USER, "own", "127.0.0.1").unwrap();
    assert!(controller.pace.is_none() && controller.vital && !one.vital);
}

#[test]
fn the_second_check_names_the_role_that_is_missing() {
    use crate::model::access::rule;
    use crate::model::error::ErrorCode;
    let world = World::new();
    let now = world.clock.now().wall;
    let check = |name: &str, verb| world.access.authorise_verb(&name.parse().unwrap(), rule("vm", verb).unwrap(), now);
    check("ci", "list").unwrap();
    let refused = check("ci", "create").unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert!(refused.message.contains("compute:write"), "{refused}");
    assert_eq!(check("nobody", "list").unwrap_err().code, ErrorCode::Unauthenticated);
}
