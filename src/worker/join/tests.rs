//! Joining with a controller that is none, and what is left when the process is killed on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use nkeys::KeyPair;

use super::*;
use crate::identity::crash;

fn candidate(dir: &Path) -> Candidate<'_> {
    Candidate { data_dir: dir, name: None, default_name: None, machine_id: "m", token: None }
}

/// A folder as a machine that has joined has it.
fn joined() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    new_seed(&dir.path().join(KEY_FILE)).unwrap();
    let record = r#"{"worker": "w", "url": "tls://ctl:4222", "future": 1}"#;
    identity::write_private(&dir.path().join(JOIN_FILE), record.as_bytes()).unwrap();
    dir
}

#[tokio::test]
async fn a_machine_that_never_joined_says_how_to() {
    let dir = tempfile::tempdir().unwrap();
    let error = candidate(dir.path()).become_member().await.unwrap_err();
    assert!(error.to_string().contains("--bootstrap-token-stdin"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_name() {
    let dir = joined();
    let asked = Candidate { name: Some("x".parse().unwrap()), ..candidate(dir.path()) };
    assert!(matches!(asked.become_member().await, Err(JoinError::OtherName { .. })));
}

#[test]
fn a_key_that_others_may_read_or_that_is_none_is_refused_and_not_shown() {
    let dir = joined();
    let member = candidate(dir.path()).load(None).unwrap().unwrap();
    assert_eq!((member.name.as_str(), member.fingerprint), ("w", None));
    let key = dir.path().join(KEY_FILE);
    let seed = fs::read_to_string(&key).unwrap();
    assert!(seed.starts_with("SU") && !format!("{member:?}").contains(&seed));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = candidate(dir.path()).load(None).unwrap_err();
    assert!(matches!(error, JoinError::Exposed { mode: 0o640, .. }), "{error}");
    assert!(error.to_string().contains("chmod 600"), "{error}");
    identity::write_private(&key, KeyPair::new_account().seed().unwrap().as_bytes()).unwrap();
    assert!(matches!(candidate(dir.path()).load(None), Err(JoinError::Damaged { .. })));
    identity::write_private(&key, seed.as_bytes()).unwrap();
    identity::write_private(&dir.path().join(JOIN_FILE), b"{}").unwrap();
    assert!(matches!(candidate(dir.path()).load(None), Err(JoinError::Damaged { .. })));
}

/// A controller with one token, which is good for so many machines.
struct FakeController {
    state: Mutex<State>,
}

struct State {
    /// The key of the worker.
    key: Option<String>,
    uses_left: u32,
    /// Every key that ever joined.
    joined: Vec<String>,
}

impl FakeController {
    fn new(uses_left: u32) -> Self {
        Self { state: Mutex::new(State { key: None, uses_left, joined: Vec::new() }) }
    }

    /// The worker is deleted, and another token is made.
    fn revoke(&self) {
        let mut state = self.state.lock().unwrap();
        (state.key, state.uses_left) = (None, 1);
    }

    fn joined(&self) -> Vec<String> {
        self.state.lock().unwrap().joined.clone()
    }
}

impl Controller for FakeController {
    async fn knows(&self, member: &Member) -> Result<(), ApiError> {
        let key = KeyPair::from_seed(member.seed.expose()).unwrap().public_key();
        match self.state.lock().unwrap().key.as_ref() == Some(&key) {
            true => Ok(()),
            false => Err(ApiError::new(ErrorCode::Unauthenticated, "no such key")),
        }
    }

    async fn join(&self, _: &BootstrapToken, request: &Join) -> Result<(), JoinError> {
        let mut state = self.state.lock().unwrap();
        if state.key.as_ref() == Some(&request.public_key) {
            return Ok(());
        }
        if state.uses_left == 0 || state.joined.contains(&request.public_key) {
            return Err(JoinError::Bus(ApiError::new(ErrorCode::LimitExceeded, "used up, or a key of old")));
        }
        state.uses_left -= 1;
        state.key = Some(request.public_key.clone());
        state.joined.push(request.public_key.clone());
        // Here, too, the process may be killed: the answer never arrives.
        crash::point().map_err(|error| JoinError::Bus(ApiError::new(ErrorCode::Timeout, error.to_string())))
    }
}

fn token() -> BootstrapToken {
    let (id, secret) = ("0123456789abcdef".parse().unwrap(), Secret::new("s"));
    BootstrapToken { url: "tls://ctl:4222".into(), fingerprint: None, id, secret }
}

async fn start(dir: &Path, token: Option<BootstrapToken>, controller: &FakeController) -> Result<Member, JoinError> {
    let name = Some("w".parse().unwrap());
    let candidate = Candidate { name, token, ..candidate(dir) };
    candidate.admit(None, controller).await
}

/// The files of a worker that has joined, and nothing else: no other key may lie about.
fn is_clean(dir: &Path) {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [JOIN_FILE, KEY_FILE]);
    for name in names {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_machine_that_is_killed_at_any_step_of_joining_joins_with_the_same_token_at_the_next_start() {
    // First as a machine that never joined, then as one that was deleted and has a key of no worth.
    for joined_before in [false, true] {
        for step in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let controller = FakeController::new(1);
            if joined_before {
                start(dir.path(), Some(token()), &controller).await.unwrap();
                controller.revoke();
            }
            let (outcome, killed) = crash::tests::killed_at(step, start(dir.path(), Some(token()), &controller)).await;
            assert_eq!(outcome.is_err(), killed, "step {step}");
            // Without the token it is let in if the controller had agreed and that was noted, and told how to if not.
            match start(dir.path(), None, &controller).await {
                Ok(_) | Err(JoinError::NoToken(_) | JoinError::Revoked { .. }) => {}
                Err(error) => panic!("step {step}: {error:?}"),
            }
            start(dir.path(), Some(token()), &controller)
                .await
                .unwrap_or_else(|error| panic!("step {step}: {error:?}"));
            is_clean(dir.path());
            assert_eq!(controller.joined().len(), 1 + usize::from(joined_before), "step {step}: one use of each token");
            // A key that was taken away does not come back, whatever was left of it.
            controller.revoke();
            assert!(matches!(start(dir.path(), None, &controller).await, Err(JoinError::Revoked { .. })));
            start(dir.path(), Some(token()), &controller).await.unwrap();
            is_clean(dir.path());
            if !killed {
                assert!(step > 10, "only {step} steps");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_machine_that_was_killed_after_it_had_joined_needs_no_token_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let controller = FakeController::new(1);
    start(dir.path(), Some(token()), &controller).await.unwrap();
    fs::rename(dir.path().join(KEY_FILE), dir.path().join(NEXT_KEY_FILE)).unwrap();
    start(dir.path(), None, &controller).await.unwrap();
    is_clean(dir.path());
}

#[tokio::test]
async fn a_key_behind_a_link_or_in_a_folder_that_others_write_to_is_refused() {
    let dir = joined();
    let controller = FakeController::new(1);
    let (key, elsewhere) = (dir.path().join(KEY_FILE), tempfile::tempdir().unwrap());
    fs::rename(&key, elsewhere.path().join("key")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("key"), &key).unwrap();
    let refused = start(dir.path(), None, &controller).await.unwrap_err();
    let JoinError::Io { doing: "trust", source, .. } = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("worker.nk is a symbolic link"), "{source}");
    fs::remove_file(&key).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(start(dir.path(), None, &controller).await, Err(JoinError::Io { .. })));
}
