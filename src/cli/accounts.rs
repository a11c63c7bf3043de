//! Service accounts on the command line: create, show, change, rotate. A token goes to standard output alone, so that it
//! can be piped into wherever it is kept; everything else that is told goes to standard error.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::client::Client;
use super::files::Explain as _;
use super::output::{self, Format, OutputArgs, Table};
use super::power::{self, UpdateVmArgs};
use super::rows::or_none;
use super::{pairs, prompt};
use crate::bus::access::{CreateAccount, Expiry, NewToken, RotateAccount, UpdateAccount};
use crate::config::duration;
use crate::model::access::Role;
use crate::model::account::AccountView;
use crate::model::secret::Secret;
use crate::model::ssh_key::{SshKey, SshKeyError};
use crate::model::{AccountName, Clock, Timestamp};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard create service-account ci --roles compute:write > token
  orchard create service-account dashboard --roles compute:read,admin:read \\
      --ttl 30d
  orchard create service-account ann --roles compute:read \\
      --roles compute:connect

Standard output gets the token and nothing else; -q leaves out what is told beside on standard error. A
token that was chosen (--token, --token-stdin) is not printed; -q then prints the name.

Roles: compute:read sees VMs, workers and events; compute:write creates and deletes VMs and connects
into them; compute:connect only connects; admin:read sees accounts, bootstrap tokens and the audit
trail; admin:write manages accounts, lets workers join, and connects to workers' own machines. No role
contains another.")]
pub(super) struct CreateAccountArgs {
    /// The account's name
    name: AccountName,
    /// What it may do
    #[arg(long, required = true, value_name = "ROLE,…", value_delimiter = ',', value_parser = pairs::one_of::<Role>)]
    roles: Vec<Role>,
    /// How long it is good, such as 12h or 30d [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = life)]
    ttl: Option<Duration>,
    /// Read its token from standard input in place of having one made
    #[arg(long, conflicts_with = "token")]
    token_stdin: bool,
    /// Its token, of 32 characters or more; others on this machine can see what stands on a command line
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    token: Option<String>,
    /// Public key file with which it may log in to the SSH jump host, beside its token; may be given several times
    #[arg(long, value_name = "FILE", value_parser = public_key)]
    ssh_key: Vec<SshKey>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Update {
    /// Change the roles or the end of a service account, for those who use it right now, too
    #[command(
        override_usage = "\
orchard update service-account [OPTIONS] <NAME>
       with --roles, --ttl or --no-expiry, --ssh-key or --no-ssh-keys",
        after_help = "\
Examples:
  orchard update service-account ci --roles compute:read,compute:write
  orchard update service-account ci --ttl 30d
  orchard update service-account ci --no-expiry"
    )]
    ServiceAccount(UpdateArgs),
    /// Change what a VM shall be, while it lives
    #[command(after_help = "\
Examples:
  orchard update vm build-1 --restart-policy Always --priority 10
  orchard update vm build-1 --ttl 8h
      # counted from its creation, 0 for none
  orchard update vm build-1 --suspendable
      # boots it again, so that it can be suspended
  orchard update vm build-1 --net-softnet-allow 10.0.0.0/8,1.1.1.1/32
      # boots it again, with these in place of all others

`orchard stop vm`, `orchard start vm` and `orchard suspend vm` switch it off and on.")]
    Vm(UpdateVmArgs),
}

#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["roles", "ttl", "no_expiry", "ssh_key", "no_ssh_keys"])]
pub(super) struct UpdateArgs {
    /// The account's name
    name: AccountName,
    /// What it may do from now on; all other roles are taken away
    #[arg(long, value_name = "ROLE,…", value_delimiter = ',', value_parser = pairs::one_of::<Role>)]
    roles: Vec<Role>,
    /// How long it is good from now on
    #[arg(long, value_name = "DURATION", value_parser = life, conflicts_with = "no_expiry")]
    ttl: Option<Duration>,
    /// It is good for ever
    #[arg(long)]
    no_expiry: bool,
    /// Public key file with which it may log in to the SSH jump host from now on; those it had are gone
    #[arg(long, value_name = "FILE", value_parser = public_key, conflicts_with = "no_ssh_keys")]
    ssh_key: Vec<SshKey>,
    /// It logs in to the jump host by its token alone
    #[arg(long)]
    no_ssh_keys: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Rotate {
    /// Give a service account a new token and print it; the old one is refused at once
    #[command(after_help = "\
Example:
  orchard rotate service-account ci > token

Standard output gets the token and nothing else; -q leaves out what is told beside on standard error.")]
    ServiceAccount {
        /// The account's name
        name: AccountName,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// The key in a file such as `~/.ssh/id_ed25519.pub`.
fn public_key(path: &str) -> Result<SshKey, String> {
    let text = std::fs::read_to_string(path).at(path.as_ref()).map_err(|error| format!("cannot read it: {error}"))?;
    text.parse().map_err(|why: SshKeyError| why.to_string())
}

/// `connect` is called once the options are known to be sound.
pub(super) async fn create<F: Future<Output = anyhow::Result<Client>>>(
    arguments: CreateAccountArgs,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let token = match (arguments.token, arguments.token_stdin) {
        (Some(token), _) => Some(Secret::new(token)),
        (None, true) => Some(prompt::secret_from_stdin().await.context("cannot read the token from standard input")?),
        (None, false) => None,
    };
    let chosen = token.is_some();
    let request = CreateAccount {
        name: arguments.name,
        roles: arguments.roles.into_iter().collect(),
        expires_at: arguments.ttl.map(end),
        token,
        ssh_keys: arguments.ssh_key,
    };
    let client = connect().await?;
    let outside = client.is_bus_outside().await;
    let made =
        client.call(&request).await.with_context(|| format!("cannot create service account {}", request.name))?;
    if arguments.output.format() != Format::Name {
        eprintln!("service account {} is created with {}", made.account.name, made.account.roles);
    }
    let todo =
        format!("make a user {} there, with this token as its password and the rights of its roles", request.name);
    client.note_outside(outside, &todo);
    match arguments.output.format() {
        // Whoever chose it has it.
        Format::Table | Format::Wide if chosen => Ok(()),
        Format::Name if chosen => Ok(output::line(request.name.as_str())?),
        _ => show_token(&made, arguments.output),
    }
}

/// `connect` is called once the options are known to be sound.
pub(super) async fn update<F: Future<Output = anyhow::Result<Client>>>(
    command: Update,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let arguments = match command {
        Update::ServiceAccount(arguments) => arguments,
        Update::Vm(arguments) => return power::update(arguments, connect).await,
    };
    let client = &connect().await?;
    let expiry = match (arguments.no_expiry, arguments.ttl) {
        (true, _) => Some(Expiry::Never),
        (false, Some(ttl)) => Some(Expiry::At(end(ttl))),
        (false, None) => None,
    };
    let roles = (!arguments.roles.is_empty()).then(|| arguments.roles.iter().copied().collect());
    let ssh_keys = (arguments.no_ssh_keys || !arguments.ssh_key.is_empty()).then_some(arguments.ssh_key);
    let request = UpdateAccount { name: arguments.name, roles, expiry, ssh_keys };
    let outside = client.is_bus_outside().await;
    let account =
        client.call(&request).await.with_context(|| format!("cannot change service account {}", request.name))?;
    let todo = format!(
        "the controller answers user {0} as its roles are now, but what it may subscribe to and when it ends is for you to \
         change there, too",
        request.name
    );
    client.note_outside(outside, &todo);
    let name = |account: &AccountView| account.name.to_string();
    Ok(arguments.output.item(&account, name, |account, _| details(account, Clock::start().now().wall))?)
}

pub(super) async fn rotate(command: Rotate, client: &Client) -> anyhow::Result<()> {
    let Rotate::ServiceAccount { name, output } = command;
    let outside = client.is_bus_outside().await;
    let made = client
        .call(&RotateAccount { name: name.clone() })
        .await
        .with_context(|| format!("cannot rotate the token of service account {name}"))?;
    let todo =
        format!("give user {name} the new token as its password there; until then only the old one opens the bus");
    client.note_outside(outside, &todo);
    show_token(&made, output)?;
    if client.target().account == name {
        eprintln!(
            "this is the account that you use here: make its context anew with `orchard context create {} \
             --service-account-name {name} --force --name NAME`",
            client.target().url
        );
    }
    Ok(())
}

/// With `-q` the token, and nothing else, stands in the place of the name: it is what would be lost.
fn show_token(made: &NewToken, output: OutputArgs) -> anyhow::Result<()> {
    match output.format() {
        format if format.is_data() => return Ok(format.data(made)?),
        Format::Name => {}
        _ => eprintln!("its token is shown this once; only its hash is kept:"),
    }
    Ok(output::line(made.token.expose())?)
}

/// Reads how long an account is good.
fn life(text: &str) -> Result<Duration, String> {
    duration::parse_life(text, duration::MAX)
}

/// When `ttl` from now is over.
fn end(ttl: Duration) -> Timestamp {
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(Clock::start().now().wall.as_millis().saturating_add(ttl))
}

/// Accounts, one a row.
pub(super) fn table(accounts: &[AccountView], now: Timestamp, wide: bool) -> Table {
    let mut table = Table::with_titles(["Name", "Roles", "Created", "Ends"]);
    for account in accounts {
        table.row([
            account.name.to_string(),
            account.roles.to_string(),
            output::ago(account.created_at, now),
            ends(account, now),
        ]);
    }
    if wide { table.beside(more(accounts, now)) } else { table }
}

fn more(accounts: &[AccountView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Token changed", "SSH keys"]);
    for account in accounts {
        table.row([token_changed(account, now), account.ssh_keys.len().to_string()]);
    }
    table
}

/// All about one account.
pub(super) fn details(account: &AccountView, now: Timestamp) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("Name", account.name.to_string());
    row("Roles", account.roles.to_string());
    row("Created", output::ago(account.created_at, now));
    row("Token changed", token_changed(account, now));
    row("Ends", ends(account, now));
    let keys: Vec<String> = account.ssh_keys.iter().map(ToString::to_string).collect();
    row("SSH keys", or_none(keys.join(", ")));
    table
}

fn token_changed(account: &AccountView, now: Timestamp) -> String {
    account.rotated_at.map_or_else(|| "never".to_owned(), |then| output::ago(then, now))
}

fn ends(account: &AccountView, now: Timestamp) -> String {
    match account.expires_at {
        None => "never".to_owned(),
        Some(end) if account.is_expired(now) => format!("{end} (over)"),
        Some(end) => end.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_listed_with_their_roles_and_their_end() {
        let account = |name: &str, expires_at: Option<i64>| AccountView {
            name: name.parse().unwrap(),
            roles: [Role::ComputeRead, Role::AdminRead].into_iter().collect(),
            created_at: Timestamp::from_millis(0),
            rotated_at: None,
            expires_at: expires_at.map(Timestamp::from_millis),
            ssh_keys: Vec::new(),
        };
        let all = [account("a", None), account("b", Some(1_000))];
        let text = table(&all, Timestamp::from_millis(60_000), false).text(output::Screen::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "a     compute:read, admin:read  1 minute ago  never");
        assert!(lines[2].ends_with("1970-01-01T00:00:01Z (over)") || lines[2].ends_with("01.000Z (over)"), "{text}");
    }
}
