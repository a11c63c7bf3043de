//! The first account: sees to it that somebody can log in. Called while the controller starts.
//!
//! Its token is made once and can be had from nowhere else, so it waits in a file of the data folder, closed to others, from
//! before the account is stored until whoever started the controller has kept it (`token_is_saved`): a crash at any moment
//! in between loses neither.

use std::io;
use std::path::{Path, PathBuf};

use super::auth::BOOTSTRAP_ADMIN;
use super::store::writer::{Step, Writer};
use super::{audit, cluster};
use crate::identity;
use crate::model::AccountName;
use crate::model::account::SecretHash;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;

/// The file in which the token waits.
const FILE: &str = "bootstrap-admin.token";

/// The first account's name.
pub(super) fn admin() -> Result<AccountName, ApiError> {
    BOOTSTRAP_ADMIN.parse()
}

/// Sees to it that the first account exists: at the first start, and whenever the operator gives a token. Yields the token
/// if it is new, or was new in an earlier start and not kept yet.
///
/// # Errors
/// A token that can be guessed; whatever file system and store say.
pub(super) async fn bootstrap(
    writer: &Writer,
    folder: &Path,
    given: Option<Secret>,
) -> Result<Option<Secret>, ApiError> {
    let waiting = Waiting::of(folder);
    let name = admin()?;
    if let Some(given) = given {
        cluster::check_token(&given)?;
        let hash = identity::hash_of(given.expose());
        let step = move |step: &mut Step<'_>| {
            restore(step, &name, hash);
            Ok(())
        };
        writer.submit(step).await?;
        waiting.remove().map_err(|error| waiting.failed("remove", &error))?;
        return Ok(Some(given));
    }
    let kept = waiting.read().map_err(|error| waiting.failed("read", &error))?;
    let of = name.clone();
    let look = move |step: &mut Step<'_>| {
        let nobody = step.cluster.account_records().next().is_none();
        Ok((nobody, step.cluster.account_record(&of).map(|account| account.token_hash)))
    };
    let (nobody, hash) = writer.submit(look).await?;
    if !nobody {
        // Not kept when it was made; of no use any more once the account has another.
        let current = kept.filter(|kept| hash.is_some_and(|hash| identity::is_hash_of(&hash, kept.expose())));
        if current.is_none() {
            waiting.remove().map_err(|error| waiting.failed("remove", &error))?;
        }
        return Ok(current);
    }
    let token = match kept {
        Some(kept) => kept,
        None => {
            let token = identity::new_token();
            waiting.write(&token).map_err(|error| waiting.failed("write", &error))?;
            token
        }
    };
    let hash = identity::hash_of(token.expose());
    let step = move |step: &mut Step<'_>| {
        restore(step, &name, hash);
        Ok(())
    };
    writer.submit(step).await?;
    Ok(Some(token))
}

/// Sees to it that the account has this token, which is nobody's request: the record says so, if anything changed.
fn restore(step: &mut Step<'_>, name: &AccountName, hash: SecretHash) {
    step.cluster.restore_admin(name, hash, step.now, step.changes);
    let changed = std::mem::take(&mut step.changes.said.message);
    if !changed.is_empty() {
        let deed = audit::own_deed("service-account.restore", name.to_string(), changed);
        step.cluster.audit(deed, step.now, step.changes);
    }
}

/// Has the token wait no more.
///
/// # Errors
/// Whatever the file system says, unless none waits.
pub(super) fn token_is_saved(folder: &Path) -> io::Result<()> {
    Waiting::of(folder).remove()
}

/// The file with the token.
struct Waiting(PathBuf);

impl Waiting {
    fn of(folder: &Path) -> Self {
        Self(folder.join(FILE))
    }

    /// The token; none when there is none, or the file is no whole one.
    fn read(&self) -> io::Result<Option<Secret>> {
        match std::fs::read_to_string(&self.0) {
            Ok(text) => Ok(Some(Secret::new(text.trim())).filter(|token| cluster::check_token(token).is_ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, token: &Secret) -> io::Result<()> {
        identity::write_private(&self.0, token.expose().as_bytes())
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn failed(&self, doing: &str, error: &io::Error) -> ApiError {
        ApiError::new(ErrorCode::Internal, format!("cannot {doing} {}: {error}", self.0.display()))
    }
}
