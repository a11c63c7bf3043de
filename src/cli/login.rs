//! Who `ssh`, `exec` and `cp` log in as, and what proves it: keys that are named, a password, the agent's keys, the user's own. What
//! only a person knows is asked for once the server wants it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::connect::Place;
use super::{Interrupted, UsageError, files, prompt};
use crate::model::secret::Secret;
use crate::model::vm::{DEFAULT_GUEST_PASSWORD, DEFAULT_GUEST_USER};
use crate::ssh::auth::Proof;
use crate::ssh::key::{Key, KeyError};
use crate::ssh::{Login, SshError};

/// Where the agent listens.
const AGENT: &str = "SSH_AUTH_SOCK";
/// The keys that a user has unless told otherwise, in `~/.ssh`, the quickest first.
const DEFAULT_KEYS: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// How often something is asked for again that turned out to be wrong, as with `ssh`.
const MAX_ASKED: usize = 3;

/// Who to log in to the guest as.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct LoginArgs {
    /// User there [default: admin in a VM, in a session the VM's; on a worker who you are here]
    #[arg(long, short, alias = "user", allow_hyphen_values = true)]
    pub(super) username: Option<String>,
    /// That user's password [default: admin in a VM, in a session the VM's]
    #[arg(long, short, allow_hyphen_values = true)]
    pub(super) password: Option<String>,
    /// A private key to log in with, or the public half of one that the SSH agent has; several are tried in turn
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Vec<PathBuf>,
}

impl LoginArgs {
    /// What is given, and what there is besides. Blocks for as long as it takes to read some small files.
    ///
    /// # Errors
    /// When a key that was named cannot be used, or nobody says who to be on a worker.
    pub(super) fn login(&self, place: &Place) -> anyhow::Result<Login> {
        self.login_in(place, &Surroundings::of_this_process())
    }

    fn login_in(&self, place: &Place, around: &Surroundings) -> anyhow::Result<Login> {
        let (user, default_password) = match place {
            Place::Vm(_) => (Some(DEFAULT_GUEST_USER), Some(DEFAULT_GUEST_PASSWORD)),
            // As `ssh` does; and no password is everybody's there.
            Place::Worker(_) => (around.user.as_deref(), None),
        };
        let user = self.username.as_deref().or(user);
        let user =
            user.ok_or_else(|| UsageError("it is not known who you are here; give a user with -u".to_owned()))?;
        for path in &self.identity {
            files::look(path).with_context(|| format!("cannot read the key {}", path.display()))?;
        }
        let named = self.identity.iter().map(|path| Key::read(path).map(Proof::Key));
        let mut proofs = named.collect::<Result<Vec<_>, KeyError>>()?;
        // Before the agent's keys: servers close the connection after a few wrong ones.
        proofs.extend(self.password.as_deref().or(default_password).map(|text| Proof::Password(Secret::new(text))));
        // Who gives a password alone wants nothing else to be tried.
        if self.password.is_none() || !self.identity.is_empty() {
            proofs.extend(around.agent.clone().map(Proof::Agent));
        }
        if self.password.is_none() && self.identity.is_empty() {
            let paths = around.keys.iter().flat_map(|folder| DEFAULT_KEYS.map(|name| folder.join(name)));
            let mut keys: Vec<Key> = paths.filter_map(|path| Key::read(&path).ok()).collect();
            keys.sort_by_key(Key::is_locked);
            proofs.extend(keys.into_iter().map(Proof::Key));
        }
        Ok(Login { user: user.to_owned(), proofs })
    }
}

/// What there is beside the options.
struct Surroundings {
    /// This machine's user.
    user: Option<String>,
    /// The agent's socket.
    agent: Option<PathBuf>,
    /// The folder with the user's keys.
    keys: Option<PathBuf>,
}

impl Surroundings {
    fn of_this_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = variable("USER").or_else(|| variable("LOGNAME"));
        Self {
            user: user.and_then(|user| user.into_string().ok()),
            agent: variable(AGENT).map(PathBuf::from),
            keys: variable("HOME").map(|home| Path::new(&home).join(".ssh")),
        }
    }
}

/// What to try after `refused`: a key is unlocked, or the password of a worker's user asked for, if there is somebody to ask. `asked`
/// counts how often that was done.
///
/// # Errors
/// What was refused, with what can be done, when nothing is left to ask for; [`Interrupted`].
pub(super) async fn ask(
    login: Login,
    refused: anyhow::Error,
    place: &Place,
    asked: &mut usize,
) -> anyhow::Result<Login> {
    match refused.downcast_ref::<SshError>() {
        Some(SshError::KeyLocked { path }) if prompt::is_possible() => {
            let path = path.clone();
            unlocked(login, path).await
        }
        Some(SshError::AuthRefused { user, takes_password: true, .. })
            if matches!(place, Place::Worker(_))
                && *asked < MAX_ASKED
                && (*asked > 0 || !login.proofs.iter().any(|proof| matches!(proof, Proof::Password(_))))
                && prompt::is_possible() =>
        {
            *asked += 1;
            let question = format!("Password of {user} on {place}: ");
            let password = secret(question).await?;
            Ok(Login { proofs: vec![Proof::Password(password)], ..login })
        }
        Some(SshError::AuthRefused { .. }) => {
            Err(anyhow::anyhow!("{refused}; -u, -p and --identity say who to be there and what proves it"))
        }
        _ => Err(refused),
    }
}

/// The same login with the key in `path` unlocked.
async fn unlocked(mut login: Login, path: PathBuf) -> anyhow::Result<Login> {
    let locked = login.proofs.iter_mut().find_map(|proof| match proof {
        Proof::Key(key) if key.path() == path => Some(key),
        _ => None,
    });
    let key = locked.context("a key that was not among the proofs")?;
    let mut tries = 0;
    *key = loop {
        let passphrase = secret(format!("Passphrase of the key {}: ", path.display())).await?;
        let trying = key.clone();
        // Slow on purpose.
        let opened = tokio::task::spawn_blocking(move || trying.unlock(&passphrase)).await;
        tries += 1;
        match opened.context("the unlocking was cut short")? {
            Ok(open) => break open,
            Err(error) if tries >= MAX_ASKED => return Err(error.into()),
            Err(error) => eprintln!("{error}"),
        }
    };
    Ok(login)
}

/// Asks on a thread of its own.
async fn secret(question: String) -> anyhow::Result<Secret> {
    let asked = tokio::task::spawn_blocking(move || prompt::secret(&question)).await;
    asked.context("the question was cut short")?.map_err(|error| match error.kind() {
        std::io::ErrorKind::Interrupted => Interrupted.into(),
        _ => anyhow::Error::new(error).context("cannot ask on this terminal"),
    })
}

#[cfg(test)]
mod tests {
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::LineEnding;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    use super::*;

    fn proofs(arguments: &LoginArgs, place: &Place, around: &Surroundings) -> Vec<String> {
        let login = arguments.login_in(place, around).unwrap();
        let shown = login.proofs.iter().map(|proof| match proof {
            Proof::Password(password) => format!("password {}", password.expose()),
            Proof::Key(key) => format!("key {}", key.path().file_name().unwrap().to_str().unwrap()),
            Proof::Agent(socket) => format!("agent {}", socket.display()),
        });
        [login.user].into_iter().chain(shown).collect()
    }

    #[test]
    fn what_is_named_comes_first_and_a_password_alone_is_all() {
        let dir = tempfile::tempdir().unwrap();
        let pair = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let locked = pair.encrypt(&mut russh::keys::key::safe_rng(), "x").unwrap();
        for (name, key) in [("id_ed25519", &locked), ("id_rsa", &pair), ("other", &pair)] {
            std::fs::write(dir.path().join(name), key.to_openssh(LineEnding::LF).unwrap()).unwrap();
        }
        std::fs::write(dir.path().join("id_ecdsa"), "no key").unwrap();
        let around =
            Surroundings { user: Some("me".into()), agent: Some("/agent".into()), keys: Some(dir.path().to_owned()) };
        let (vm, worker) = (Place::Vm("a".parse().unwrap()), Place::Worker("w".parse().unwrap()));
        let none = LoginArgs::default();
        assert_eq!(
            proofs(&none, &vm, &around),
            ["admin", "password admin", "agent /agent", "key id_rsa", "key id_ed25519"]
        );
        assert_eq!(proofs(&none, &worker, &around), ["me", "agent /agent", "key id_rsa", "key id_ed25519"]);
        let password = LoginArgs { password: Some("p".into()), username: Some("u".into()), ..LoginArgs::default() };
        assert_eq!(proofs(&password, &vm, &around), ["u", "password p"]);
        assert_eq!(proofs(&password, &worker, &around), ["u", "password p"]);
        let named = LoginArgs { identity: vec![dir.path().join("other")], ..LoginArgs::default() };
        assert_eq!(proofs(&named, &vm, &around), ["admin", "key other", "password admin", "agent /agent"]);
        let nobody = Surroundings { user: None, agent: None, keys: None };
        assert_eq!(proofs(&none, &vm, &nobody), ["admin", "password admin"]);
        assert!(none.login_in(&worker, &nobody).unwrap_err().is::<UsageError>());
        let missing = LoginArgs { identity: vec![dir.path().join("missing")], ..LoginArgs::default() };
        assert!(missing.login_in(&vm, &nobody).unwrap_err().to_string().contains("missing"));
    }

    #[tokio::test]
    async fn without_anybody_to_ask_a_refusal_says_what_can_be_given() {
        let login = Login { user: "u".into(), proofs: Vec::new() };
        let refused = SshError::AuthRefused {
            user: "u".into(),
            tried: "the password".into(),
            offers: "it takes: publickey".into(),
            takes_password: false,
        };
        let place = Place::Worker("w".parse().unwrap());
        let error = ask(login, refused.into(), &place, &mut 0).await.unwrap_err().to_string();
        assert!(error.contains("tried: the password (it takes: publickey)") && error.contains("--identity"), "{error}");
    }
}
