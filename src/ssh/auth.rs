//! Logging in: the proofs that there are of who one is, one after the other. [`client`](super::client) calls `log_in` once the
//! server has shown its host key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use russh::client::{AuthResult, Handle, Handler, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use russh::{AgentAuthError, MethodKind, MethodSet};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::key::Key;
use super::signer::{Hand, NotSigned};
use super::{Login, SshError};
use crate::model::secret::Secret;

/// Rounds of questions that a server may ask before we give up; one is usual.
const MAX_PROMPT_ROUNDS: usize = 5;
/// How long an agent may take to say which keys it has.
const AGENT_WAIT: Duration = Duration::from_secs(5);
/// Keys of an agent that are tried: servers close the connection after a few, six with OpenSSH unless it is told otherwise.
const MAX_AGENT_KEYS: usize = 32;

/// Something that proves who one is.
#[derive(Clone, Debug)]
pub enum Proof {
    /// A password: given as such, then as the answer to the server's questions (PAM set up so).
    Password(Secret),
    /// A key from a file, with its certificate if there is one. The agent among the proofs signs for one that is locked, or
    /// of which only the public half is there.
    Key(Key),
    /// Every key of the agent at this Unix socket.
    Agent(PathBuf),
}

/// Tries the proofs of `login` in their order.
///
/// # Errors
/// [`SshError::AuthRefused`] with what was tried, [`SshError::KeyLocked`] as soon as the server takes a key that is locked,
/// [`SshError::Lost`].
pub(super) async fn log_in<H: Handler>(handle: &mut Handle<H>, login: &Login) -> Result<(), SshError> {
    let agent = login.proofs.iter().find_map(|proof| match proof {
        Proof::Agent(socket) => Some(Agent::NotAsked(socket)),
        _ => None,
    });
    let agent = agent.unwrap_or(Agent::None);
    let mut attempt = Attempt { handle, user: &login.user, offers: None, tried: Vec::new(), keys: Vec::new(), agent };
    for proof in &login.proofs {
        let accepted = match proof {
            Proof::Password(password) => attempt.password(password).await?,
            Proof::Key(key) => attempt.key(key).await?,
            Proof::Agent(_) => attempt.agent_keys().await?,
        };
        if accepted {
            return Ok(());
        }
        if attempt.handle.is_closed() {
            break;
        }
    }
    Err(attempt.refused())
}

/// The agent of this machine's user.
enum Agent<'a> {
    None,
    NotAsked(&'a Path),
    Asked(AgentClient<UnixStream>, Vec<AgentIdentity>),
}

/// A login that goes on.
struct Attempt<'a, H: Handler> {
    handle: &'a mut Handle<H>,
    user: &'a str,
    /// What the server takes, once it has said so.
    offers: Option<MethodSet>,
    /// What it has refused, in words.
    tried: Vec<String>,
    /// The keys among that.
    keys: Vec<PublicKey>,
    agent: Agent<'a>,
}

impl<H: Handler> Attempt<'_, H> {
    async fn password(&mut self, password: &Secret) -> Result<bool, SshError> {
        let (as_such, asked) = (MethodKind::Password, MethodKind::KeyboardInteractive);
        if !self.takes(as_such) && !self.takes(asked) {
            self.tried.push("the password (not taken)".to_owned());
            return Ok(false);
        }
        self.tried.push("the password".to_owned());
        if self.takes(as_such) {
            let result = self.handle.authenticate_password(self.user, password.expose()).await.map_err(lost)?;
            if self.is_accepted(result) {
                return Ok(true);
            }
        }
        let asks = self.offers.as_ref().is_some_and(|offers| offers.contains(&asked));
        Ok(asks && self.answer_prompts(password).await?)
    }

    async fn answer_prompts(&mut self, password: &Secret) -> Result<bool, SshError> {
        let mut answer = self.handle.authenticate_keyboard_interactive_start(self.user, None).await.map_err(lost)?;
        for _ in 0..MAX_PROMPT_ROUNDS {
            answer = match answer {
                KeyboardInteractiveAuthResponse::Success => return Ok(true),
                KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
                KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                    // the password only where it would not be shown: other questions are not for it
                    let answers = prompts.iter().map(|prompt| match prompt.echo {
                        false => password.expose().to_owned(),
                        true => String::new(),
                    });
                    let answers = answers.collect();
                    self.handle.authenticate_keyboard_interactive_respond(answers).await.map_err(lost)?
                }
            };
        }
        Ok(false)
    }

    /// A key's certificate first, as `ssh` does it: where that is taken, the key alone usually is not.
    async fn key(&mut self, key: &Key) -> Result<bool, SshError> {
        let name = format!("the key {}", key.path().display());
        if let Some(certificate) = key.certificate() {
            let name = format!("the certificate of {name}");
            if self.offer(key, Some(certificate), &name).await? {
                return Ok(true);
            }
            if self.handle.is_closed() {
                return Ok(false);
            }
        }
        self.offer(key, None, &name).await
    }

    async fn offer(&mut self, key: &Key, certificate: Option<&Certificate>, name: &str) -> Result<bool, SshError> {
        let Some(hash) = self.begin(key.public(), name).await? else { return Ok(false) };
        if certificate.is_some() {
            // The key alone is still to be tried.
            self.keys.pop();
        }
        let private = key.private();
        if private.is_none() {
            self.ask_agent().await;
        }
        let mut hand = match (private, &mut self.agent) {
            (Some(private), _) => Hand::Own(private),
            // Whoever holds it may sign, without a passphrase.
            (None, Agent::Asked(agent, identities))
                if identities.iter().any(|held| held.public_key().key_data() == key.public().key_data()) =>
            {
                Hand::Agent(agent, key.public().clone())
            }
            _ => Hand::Nobody,
        };
        let asked = match certificate.cloned() {
            Some(one) => self.handle.authenticate_certificate_with(self.user, one, hash, &mut hand).await,
            None => self.handle.authenticate_publickey_with(self.user, key.public().clone(), hash, &mut hand).await,
        };
        let why = match asked {
            Ok(result) => return Ok(self.is_accepted(result)),
            Err(NotSigned::Lost) => return Err(SshError::Lost(String::new())),
            // It is worth asking for the passphrase: the server takes this key.
            Err(NotSigned::Nobody) if key.is_locked() => {
                return Err(SshError::KeyLocked { path: key.path().to_owned() });
            }
            Err(NotSigned::Nobody) => "only its public half is there and no agent has it".to_owned(),
            Err(NotSigned::Failed(why)) => why,
        };
        self.tried.push(format!("{name} (taken, but not signed for: {why})"));
        Ok(false)
    }

    async fn agent_keys(&mut self) -> Result<bool, SshError> {
        self.ask_agent().await;
        let Agent::Asked(_, identities) = &self.agent else { return Ok(false) };
        for identity in identities.clone().into_iter().take(MAX_AGENT_KEYS) {
            let name = format!("the agent's key {}", identity.comment());
            // A certificate may be taken where its key alone was not.
            if let AgentIdentity::Certificate { certificate, .. } = &identity {
                self.keys.retain(|tried| tried.key_data() != certificate.public_key());
            }
            let Some(hash) = self.begin(&identity.public_key(), &name).await? else { continue };
            let Agent::Asked(agent, _) = &mut self.agent else { break };
            let signed = match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    self.handle.authenticate_publickey_with(self.user, key, hash, agent).await
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    self.handle.authenticate_certificate_with(self.user, certificate, hash, agent).await
                }
            };
            if self.is_signed(signed, &name)? {
                return Ok(true);
            }
            if self.handle.is_closed() {
                break;
            }
        }
        Ok(false)
    }

    /// Asks the agent for its keys, if that has not been done; what is in the way is among what was tried then.
    async fn ask_agent(&mut self) {
        let Agent::NotAsked(socket) = self.agent else { return };
        self.agent = Agent::None;
        let binding = self.handle.agent_session_binding().cloned();
        let asked = async {
            let mut agent = AgentClient::connect_uds(socket).await?;
            // For keys that are bound to some servers; agents that know no such refuse it, which does not matter.
            if let Some(binding) = binding {
                let _ = agent.bind_session(&binding, false).await;
            }
            let identities = agent.request_identities().await?;
            Ok::<_, russh::keys::Error>((agent, identities))
        };
        match timeout(AGENT_WAIT, asked).await {
            Ok(Ok((agent, identities))) => self.agent = Agent::Asked(agent, identities),
            Ok(Err(error)) => self.tried.push(format!("the agent (cannot be asked: {error})")),
            Err(_) => self.tried.push("the agent (does not answer)".to_owned()),
        }
    }

    /// Notes that a key is tried, and yields what it is to sign with; none when there is no use in it.
    async fn begin(&mut self, key: &PublicKey, name: &str) -> Result<Option<Option<HashAlg>>, SshError> {
        if self.keys.iter().any(|tried| tried.key_data() == key.key_data()) {
            return Ok(None);
        }
        self.keys.push(key.clone());
        if !self.takes(MethodKind::PublicKey) {
            self.tried.push(format!("{name} (keys are not taken)"));
            return Ok(None);
        }
        self.tried.push(name.to_owned());
        if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
            return Ok(Some(None));
        }
        // A server that does not say takes what all have for long.
        Ok(Some(self.handle.best_supported_rsa_hash().await.map_err(lost)?.unwrap_or(Some(HashAlg::Sha256))))
    }

    fn is_signed(&mut self, signed: Result<AuthResult, AgentAuthError>, name: &str) -> Result<bool, SshError> {
        match signed {
            Ok(result) => Ok(self.is_accepted(result)),
            Err(AgentAuthError::Send(_)) => Err(SshError::Lost(String::new())),
            Err(AgentAuthError::Key(error)) => {
                self.tried.push(format!("{name} (taken, but the agent did not sign: {error})"));
                Ok(false)
            }
        }
    }

    fn is_accepted(&mut self, result: AuthResult) -> bool {
        match result {
            AuthResult::Success => true,
            AuthResult::Failure { remaining_methods, .. } => {
                // One that has hung up says nothing.
                if !remaining_methods.is_empty() || self.offers.is_none() {
                    self.offers = Some(remaining_methods);
                }
                false
            }
        }
    }

    /// Whether the server takes such proofs, or has not said.
    fn takes(&self, method: MethodKind) -> bool {
        self.offers.as_ref().is_none_or(|offers| offers.contains(&method))
    }

    fn refused(self) -> SshError {
        let closed = self.handle.is_closed();
        if closed && self.tried.len() < 2 {
            return SshError::Lost("it closed the connection during login".to_owned());
        }
        let offers = match (closed, &self.offers) {
            (true, _) => "it then closed the connection".to_owned(),
            (false, Some(offers)) => format!("it takes: {}", names(offers)),
            (false, None) => "it was not asked what it takes".to_owned(),
        };
        let takes_password =
            !closed && (self.takes(MethodKind::Password) || self.takes(MethodKind::KeyboardInteractive));
        let tried = if self.tried.is_empty() { "nothing".to_owned() } else { self.tried.join(", ") };
        SshError::AuthRefused { user: self.user.to_owned(), tried, offers, takes_password }
    }
}

/// The session fills in what is known of the cause.
fn lost(_: russh::Error) -> SshError {
    SshError::Lost(String::new())
}

fn names(methods: &MethodSet) -> String {
    let names: Vec<&str> = methods.iter().map(<&str>::from).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
