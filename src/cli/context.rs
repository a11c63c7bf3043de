//! `orchard context`: makes controllers known to this machine. Whom to trust is settled before any credentials are sent,
//! and the credentials are tried before they are saved.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::Client;
use super::delete::Deleted;
use super::output::{self, OutputArgs, Table};
use super::{Interrupted, UsageError, prompt};
use crate::bus::message::GetInfo;
use crate::bus::probe;
use crate::config::Home;
use crate::config::address::{self, normalise_bus_url};
use crate::config::context::{Context, ContextError, Contexts};
use crate::config::file::ContextFile;
use crate::config::target::Target;
use crate::identity::ca::Fingerprint;
use crate::model::AccountName;
use crate::model::secret::Secret;

#[derive(Debug, Subcommand)]
pub(super) enum ContextCommand {
    /// Make a controller known: settle whom to trust there, log in once, and save it
    #[command(after_help = "\
Examples:
  orchard context create ctl.example.com
  orchard context create ctl.example.com:4222 --name work \\
      --service-account-name ci --service-account-token-stdin \\
      --fingerprint 5f3a… < token

A certificate that a public CA vouches for is trusted. Any other is shown by its SHA-256, which the
controller prints when it starts, and asked about. Without a terminal, give it with --fingerprint.")]
    Create(CreateArgs),
    /// List the saved contexts; the default is marked
    #[command(after_help = "Example:\n  orchard context list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a saved context the default
    #[command(after_help = "Example:\n  orchard context default work")]
    Default {
        /// The context's name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Forget a saved context; its account goes on to exist
    #[command(after_help = "Example:\n  orchard context delete work")]
    Delete {
        /// The context's name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Where the controller's bus is: HOST, HOST:PORT or tls://HOST:PORT; nats://… means plain text
    #[arg(value_name = "CONTROLLER_URL", value_parser = normalise_bus_url)]
    url: String,
    /// The context's name
    #[arg(long, default_value = "default", value_parser = context_name)]
    name: String,
    /// The account to log in as [default: is asked for]
    #[arg(long, value_name = "NAME")]
    service_account_name: Option<AccountName>,
    /// Its token [default: is asked for]; others on this machine can see what stands on a command line
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true, conflicts_with = "service_account_token_stdin")]
    service_account_token: Option<String>,
    /// Read its token from standard input
    #[arg(long)]
    service_account_token_stdin: bool,
    /// Trust exactly the certificate with this SHA-256, and ask nobody
    #[arg(long, value_name = "SHA256")]
    fingerprint: Option<Fingerprint>,
    /// Trust no public CA, only the controller's own certificate
    #[arg(long)]
    no_pki: bool,
    /// Replace a context of the same name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(command: ContextCommand, home: Home) -> anyhow::Result<()> {
    let file = ContextFile::new(home);
    match command {
        ContextCommand::Create(arguments) => create(arguments, &file).await,
        ContextCommand::List { output } => list(&file.load()?, output),
        ContextCommand::Default { name, output } => {
            file.try_update(|all| all.set_default(&name))?;
            let saved = file.load()?;
            tell(&saved, &name, output, |context| {
                format!("context {name}, which leads to {}, is the default", context.url)
            })
        }
        ContextCommand::Delete { name, output } => {
            let mut default = None;
            let removed = file.try_update(|all| {
                all.remove(&name)?;
                default = all.default.clone();
                Ok(())
            });
            removed.map_err(|error| match error {
                // What makes one is no advice here.
                ContextError::Unknown { name, known } => {
                    anyhow::anyhow!(
                        "there is no context {name:?} to delete (known: {known}); `orchard context list` shows all"
                    )
                }
                other => other.into(),
            })?;
            let text = || match default {
                Some(_) => format!("context {name} is forgotten"),
                None => format!(
                    "context {name} is forgotten; none is the default now, and `orchard context default NAME` chooses one"
                ),
            };
            Ok(output.done(&Deleted { name: name.clone(), deleted: true }, |_| name.clone(), text)?)
        }
    }
}

/// Tells what became of a context, which is saved now.
fn tell(saved: &Contexts, name: &str, output: OutputArgs, text: impl FnOnce(&Listed) -> String) -> anyhow::Result<()> {
    let Some(context) = listed(saved).into_iter().find(|context| context.name == name) else { return Ok(()) };
    Ok(output.done(&context, |context| output::clean(&context.name), || text(&context))?)
}

async fn create(arguments: CreateArgs, file: &ContextFile) -> anyhow::Result<()> {
    // What is refused at the end should be refused before anybody was asked anything.
    if !arguments.force
        && let Some(there) = file.load()?.contexts.get(&arguments.name)
    {
        let (name, url) = (arguments.name.clone(), there.url.clone());
        return Err(ContextError::Exists { name, url }.into());
    }
    // Standard input is read first, while it is there; questions need it for themselves.
    let given = match (arguments.service_account_token, arguments.service_account_token_stdin) {
        (Some(token), _) if token.is_empty() => {
            return Err(UsageError("--service-account-token is empty".to_owned()).into());
        }
        (Some(token), _) => Some(Secret::new(token)),
        (None, true) => Some(prompt::secret_from_stdin().await.context("cannot read the token from standard input")?),
        (None, false) => None,
    };
    let fingerprint = whom_to_trust(&arguments.url, arguments.fingerprint, arguments.no_pki).await?;
    let account = match arguments.service_account_name {
        Some(name) => name,
        None => ask("--service-account-name", || prompt::line("Service account: ")).await?.parse()?,
    };
    let token = match given {
        Some(token) => token,
        None => {
            let question = format!("Token of {account} (it is not shown): ");
            ask("--service-account-token-stdin", move || prompt::secret(&question)).await?
        }
    };
    if token.expose().is_empty() {
        return Err(UsageError("the token is empty".to_owned()).into());
    }
    let context = Context {
        url: arguments.url.clone(),
        account: Some(account.clone()),
        token: Some(token.clone()),
        fingerprint,
        other: Default::default(),
    };
    let target = Target { url: arguments.url, fingerprint, account, token };
    let client = Client::log_in(target).await.context("nothing is saved")?;
    let info =
        client.call(&GetInfo {}).await.context("nothing is saved: the login is good, but no controller answers")?;
    let (name, url) = (&arguments.name, context.url.clone());
    file.try_update(|all| {
        match arguments.force {
            true => all.put(name, context, false),
            false => all.add(name, context)?,
        }
        Ok(())
    })?;
    tell(&file.load()?, name, arguments.output, |saved| {
        let default = if saved.default { ", and is the default" } else { "; --context names it" };
        format!("context {name} leads to {url} (orchard {}){default}", output::clean(&info.version))
    })
}

/// Settles which certificate is trusted at `url`; none = one that a public CA vouches for, or none at all in plain text.
async fn whom_to_trust(url: &str, given: Option<Fingerprint>, no_pki: bool) -> anyhow::Result<Option<Fingerprint>> {
    if address::is_plain(url) {
        if given.is_some() || no_pki {
            let tls = url.replace("nats://", "tls://");
            let what = format!("nats:// means plain text, where there is no certificate to trust; write {tls}");
            return Err(UsageError(what).into());
        }
        if !address::is_loopback(url) {
            eprintln!(
                "WARNING: nats:// means plain text: anybody on the way can read the token and change what is sent"
            );
        }
        return Ok(None);
    }
    if given.is_some() {
        return Ok(given);
    }
    let first = url.split(',').next().unwrap_or(url);
    let (Some(host), Some(port)) = (address::host_of(first), address::port_of(first)) else {
        anyhow::bail!("there is no host and port in {first}");
    };
    let seen = probe::certificate_at(host, port).await?;
    let doubt = match (seen.doubt, no_pki) {
        (None, false) => return Ok(None),
        (None, true) => "--no-pki is given".to_owned(),
        (Some(doubt), _) => doubt,
    };
    let fingerprint = seen.fingerprint;
    if !prompt::is_possible() {
        anyhow::bail!(
            "no public CA vouches for the certificate of {first} ({doubt}), and there is no terminal to ask on whether to \
             trust it; if the controller itself says that its certificate has this SHA-256, give it with --fingerprint \
             {fingerprint}"
        );
    }
    eprintln!(
        "No public CA vouches for the certificate of {first} ({doubt}).\nIts SHA-256 is\n  {fingerprint}\nCompare it with what \
         the controller printed when it started: if they differ, somebody else answers there.",
    );
    let trusted = ask("--fingerprint", || prompt::yes_or_no("Trust this certificate from now on?")).await?;
    if !trusted {
        anyhow::bail!("the certificate of {first} is not trusted; nothing was told to it and nothing is saved");
    }
    Ok(Some(fingerprint))
}

/// Asks somebody, on a thread of its own; where nobody is, names the option that answers.
async fn ask<T: Send + 'static>(
    option: &str,
    question: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    if !prompt::is_possible() {
        return Err(UsageError(format!("there is no terminal to ask on; answer with {option}")).into());
    }
    let answer = tokio::task::spawn_blocking(question).await.context("the question was cut short")?;
    match answer {
        // In the hidden mode Ctrl-C is a key like others.
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(Interrupted.into()),
        answer => answer.context("no answer"),
    }
}

/// A context's name: one word that a command line takes without quotes.
fn context_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    match text {
        "" => Err("the name is empty".to_owned()),
        text if text.starts_with('-') || !text.chars().all(good) => {
            Err(format!("{text:?} is no name for a context; use letters, digits, '-', '_', '.' and '@'"))
        }
        text => Ok(text.to_owned()),
    }
}

/// A context as programs see it: without the token, as what is listed gets copied around.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    url: String,
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_name: Option<AccountName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
}

fn list(contexts: &Contexts, output: OutputArgs) -> anyhow::Result<()> {
    Ok(output.items(&listed(contexts), |context| output::clean(&context.name), |contexts, _| table(contexts))?)
}

fn listed(contexts: &Contexts) -> Vec<Listed> {
    let one = |(name, context): (&String, &Context)| Listed {
        name: name.clone(),
        url: context.url.clone(),
        default: contexts.default.as_ref() == Some(name),
        service_account_name: context.account.clone(),
        fingerprint: context.fingerprint,
    };
    contexts.contexts.iter().map(one).collect()
}

fn table(contexts: &[Listed]) -> Table {
    let mut table = Table::with_titles(["Name", "URL", "Default", "Service account", "Trusts"]);
    for context in contexts {
        let url = normalise_bus_url(&context.url).unwrap_or_else(|_| context.url.clone());
        let trusts = match context.fingerprint {
            Some(fingerprint) => fingerprint.to_string(),
            None if address::is_plain(&url) => "anybody (plain text)".to_owned(),
            None => "public CAs".to_owned(),
        };
        table.row([
            context.name.clone(),
            url,
            if context.default { "*".to_owned() } else { String::new() },
            context.service_account_name.as_ref().map(ToString::to_string).unwrap_or_default(),
            trusts,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_whom_each_context_trusts_and_no_token() {
        let context = |url: &str, fingerprint| Context {
            url: url.to_owned(),
            account: Some("ann".parse().unwrap()),
            token: Some(Secret::new("hunter2")),
            fingerprint,
            other: Default::default(),
        };
        let mut all = Contexts::default();
        all.put("a", context("ctl", Some(Fingerprint::of(b"abc"))), false);
        all.put("b", context("nats://127.0.0.1:1", None), false);
        all.put("c", context("tls://ctl.example:4222", None), false);
        let text = table(&listed(&all)).text(output::Screen::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        let all_of_it = Fingerprint::of(b"abc").to_string();
        assert_eq!(lines[1], format!("a     tls://ctl:4222          *        ann              {all_of_it}"));
        assert!(lines[2].ends_with("anybody (plain text)") && lines[3].ends_with("public CAs"), "{text}");
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn a_contexts_name_is_one_word() {
        for good in ["default", "work-1", "ann@ctl.example"] {
            assert_eq!(context_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "-x", "a b", "a/b", "a\n"] {
            assert!(context_name(bad).is_err(), "{bad:?}");
        }
    }
}
