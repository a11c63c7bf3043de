//! `orchard ssh-config`: a configuration by which stock `ssh`, and so `scp`, `sftp`, `rsync` and Ansible, reach VMs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::client::{Client, context_in_force};
use super::{Global, output};
use crate::config::known_hosts::{KnownHosts, alias};
use crate::config::{HOME_VARIABLE, Home};
use crate::model::VmName;
use crate::model::vm::Vm;
use crate::ssh::quote::quote;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard ssh-config > ~/.ssh/orchard
      # once, and in ~/.ssh/config: Include orchard
  ssh build-1.orchard
  rsync -a src/ build-1.orchard:src/
  orchard ssh-config build-1 > one.conf          # for one VM alone:
  ssh -F one.conf build-1.orchard uname -a

Each VM's host key is remembered by the VM's identity: another key of the same VM is an error, a new VM
of the same name is not. So the configuration is of the VMs that there are; print it again when they
have changed. ssh asks for the guest user's password unless the guest knows a key of yours.")]
pub(super) struct SshConfigArgs {
    /// The VMs [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
    /// Guest user [default: the VM's]
    #[arg(long, short)]
    username: Option<String>,
    /// What follows a VM's name in its host name; may be empty
    #[arg(long, default_value = ".orchard", value_parser = suffix)]
    suffix: String,
}

fn suffix(text: &str) -> Result<String, String> {
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        Some(bad) => Err(format!("{bad:?} has no place in a host name; use letters, digits, - _ .")),
        None => Ok(text.to_owned()),
    }
}

pub(super) async fn run(arguments: SshConfigArgs, home: &Home, global: &Global, client: &Client) -> anyhow::Result<()> {
    let vms = if arguments.names.is_empty() {
        client.vms().await?
    } else {
        let mut vms = Vec::new();
        for name in &arguments.names {
            vms.push(client.vm(name).await?);
        }
        vms
    };
    // Made now, so that `ssh` can write into it.
    home.prepare()?;
    let way = Way {
        program: std::env::current_exe().context("cannot find out where this program is")?,
        home: std::env::var_os(HOME_VARIABLE).map(|_| home.path().to_owned()),
        context: context_in_force(home, global)?,
        known_hosts: KnownHosts::new(home.clone()).path(),
    };
    let mut text = String::from("# Made by `orchard ssh-config`; print it again when VMs have come or gone.\n");
    for vm in &vms {
        text.push_str(&block(vm, &arguments, &way)?);
    }
    output::line(text.trim_end())?;
    Ok(())
}

/// How `ssh` is to call this program.
struct Way {
    program: PathBuf,
    home: Option<PathBuf>,
    context: Option<String>,
    known_hosts: PathBuf,
}

fn block(vm: &Vm, arguments: &SshConfigArgs, way: &Way) -> anyhow::Result<String> {
    let (name, id) = (&vm.name, vm.copy_id());
    let user = arguments.username.as_deref().unwrap_or_else(|| vm.spec.guest_user());
    let mut command = String::from("env");
    if let Some(home) = &way.home {
        write!(command, " {HOME_VARIABLE}={}", word(home)?)?;
    }
    write!(command, " {}", word(&way.program)?)?;
    if let Some(context) = &way.context {
        write!(command, " --context {}", word(Path::new(context))?)?;
    }
    let known = way.known_hosts.to_str().filter(|path| !path.contains(['"', '\n', '\\'])).with_context(|| {
        format!("ssh can not be told of {}: it holds a quote, a backslash or is no text", way.known_hosts.display())
    })?;
    let odd = ['"', '\n', '\\', '%', '$'];
    anyhow::ensure!(!user.contains(odd), "ssh can not be told of user {user:?}: set another with --username");
    Ok(format!(
        "\n# VM {name}\nHost {name}{}\n    HostName {name}\n    User \"{}\"\n    ProxyCommand {command} proxy vm --wait --copy={}/{} %h %p\n    \
         HostKeyAlias {}\n    UserKnownHostsFile \"{}\"\n    GlobalKnownHostsFile /dev/null\n    StrictHostKeyChecking accept-new\n    \
         HashKnownHosts no\n    CheckHostIP no\n    ConnectTimeout 90\n",
        arguments.suffix,
        user,
        id.uid,
        id.attempt,
        alias(id.uid, Some(id.attempt)),
        percent(known),
    ))
}

/// A word of the command that `ssh` gives to the user's shell.
fn word(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\r']));
    let text = text.with_context(|| format!("ssh can not be told of {path:?}: it is no text of one line"))?;
    Ok(quote(&percent(text)))
}

/// `ssh` takes a percent sign for the start of a token.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::vm;
    use super::*;
    use crate::model::vm::VmStatus;

    #[test]
    fn paths_and_names_survive_ssh_and_the_shell() {
        let way = Way {
            program: "/opt/100% it's/orchard".into(),
            home: Some("/h o".into()),
            context: Some("a b".into()),
            known_hosts: "/h o/50%/known_hosts".into(),
        };
        let arguments = SshConfigArgs { names: Vec::new(), username: None, suffix: ".orchard".into() };
        let vm = vm("a", VmStatus::Running);
        let text = block(&vm, &arguments, &way).unwrap();
        let command = r"ProxyCommand env ORCHARD_HOME='/h o' '/opt/100%% it'\''s/orchard' --context 'a b' proxy vm";
        assert!(text.contains(command), "{text}");
        assert!(text.contains("UserKnownHostsFile \"/h o/50%%/known_hosts\""), "{text}");
        assert!(text.contains(&format!("HostKeyAlias orchard-{}-0\n", vm.uid)), "{text}");
        assert!(text.contains("\nHost a.orchard\n    HostName a\n    User \"admin\"\n"), "{text}");
    }

    #[test]
    fn what_ssh_cannot_read_is_refused() {
        let way =
            Way { program: "/orchard".into(), home: None, context: None, known_hosts: "/h\"o/known_hosts".into() };
        let arguments = SshConfigArgs { names: Vec::new(), username: None, suffix: String::new() };
        let refused = block(&vm("a", VmStatus::Running), &arguments, &way).unwrap_err().to_string();
        assert!(refused.starts_with("ssh can not be told of"), "{refused}");
        assert!(refused.ends_with(": it holds a quote, a backslash or is no text"), "{refused}");
        assert!(suffix("a b").is_err() && suffix("*").is_err() && suffix("").is_ok());
        assert!(word(Path::new("/a\nb")).unwrap_err().to_string().ends_with(": it is no text of one line"));
    }
}
