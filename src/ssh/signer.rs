//! Who signs for a key when a server takes it: the key itself, the agent that holds it, or nobody, which only finds out whether the
//! server would take it. Used by [`auth`](super::auth).

use std::sync::Arc;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Signature};
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use russh::{SendError, Signer};
use tokio::net::UnixStream;

/// Signs for one key, and for certificates of it.
pub(super) enum Hand<'a> {
    /// The key itself.
    Own(Arc<PrivateKey>),
    /// The agent, which need not know of the certificate.
    Agent(&'a mut AgentClient<UnixStream>, PublicKey),
    /// Nobody does.
    Nobody,
}

/// Why nothing was signed.
#[derive(Debug)]
pub(super) enum NotSigned {
    /// There is nobody to do so: the server takes the key.
    Nobody,
    /// It did not work.
    Failed(String),
    /// The connection is gone.
    Lost,
}

impl From<SendError> for NotSigned {
    fn from(_: SendError) -> Self {
        NotSigned::Lost
    }
}

impl Signer for Hand<'_> {
    type Error = NotSigned;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, NotSigned> {
        match self {
            Hand::Own(key) => {
                let signed = sign(key, hash, &data).and_then(|signature| Ok(signature.encode_prefixed(&mut data)?));
                signed.map_err(|error| NotSigned::Failed(error.to_string()))?;
                Ok(data)
            }
            Hand::Agent(agent, key) => {
                let signed = agent.sign_request(&key.clone().into(), hash, data).await;
                signed.map_err(|error| NotSigned::Failed(format!("the agent did not: {error}")))
            }
            Hand::Nobody => Err(NotSigned::Nobody),
        }
    }
}

fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> ssh_key::Result<Signature> {
    Ok(match key.key_data() {
        KeypairData::Rsa(pair) => (pair, hash).try_sign(data)?,
        pair => pair.try_sign(data)?,
    })
}
