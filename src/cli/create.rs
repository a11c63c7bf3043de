//! `orchard create`: service accounts go to `accounts`; of a VM, the request out of the options; [`wait`](super::wait) then
//! follows the VM until it is ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::accounts::{self, CreateAccountArgs};
use super::client::Client;
use super::files::Explain as _;
use super::output::OutputArgs;
use super::wait::WaitArgs;
use super::{UsageError, pairs, placing, prompt, wait};
use crate::bus::message::CreateVm;
use crate::config::duration;
use crate::model::error::ApiError;
use crate::model::features;
use crate::model::resources::WORKER_NAME_LABEL;
use crate::model::secret::{Secret, redact_urls};
use crate::model::settings::HostDir;
use crate::model::vm::{
    Arch, Firmware, ImagePullPolicy, OnUnseen, Os, PowerState, RestartPolicy, RuntimeKind, StartupScript, VmSpec,
};
use crate::model::{VmName, WorkerName};

/// The longest startup script: with the rest of the request it stays well below the bus's payload limit of 1 MiB.
const MAX_SCRIPT_BYTES: u64 = 512 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Create {
    /// Create a VM from an image
    #[command(after_help = "\
Examples:
  orchard create vm build-1 --image ./tiny.qcow2 --wait
  orchard create vm build-2 --image https://example.com/tiny.qcow2 \\
      --startup-script @setup.sh
  orchard create vm build-3 --image ghcr.io/cirruslabs/macos-tahoe-base:latest

A path that exists on this machine is sent in full; the worker that runs the VM reads it there.")]
    Vm(Box<CreateVmArgs>),
    /// Create a service account and print its token, which is shown this once
    ServiceAccount(CreateAccountArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateVmArgs {
    /// The VM's name, free among live VMs
    name: VmName,
    /// What the disk is cloned from: a path on the worker, an http(s) URL, or a name that the runtime knows
    #[arg(long, value_name = "PATH|URL", value_parser = image)]
    image: String,
    /// CPU cores [default: the worker's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = pairs::amount)]
    cpu: u64,
    /// Memory in MiB [default: the worker's]
    #[arg(long, value_name = "MIB", default_value_t = 0, hide_default_value = true, value_parser = pairs::amount)]
    memory: u64,
    /// Disk size in GB [default: the image's own]
    #[arg(long, value_name = "GB", default_value_t = 0, hide_default_value = true, value_parser = pairs::amount)]
    disk_size: u64,
    /// What it begins to boot with: default (a BIOS on amd64) or uefi; in QEMU
    #[arg(long, value_name = "WHAT", default_value = "default", value_parser = pairs::one_of::<Firmware>)]
    firmware: Firmware,
    /// Guest operating system: darwin or linux [default: whatever the image holds]
    #[arg(long, value_parser = pairs::one_of::<Os>)]
    os: Option<Os>,
    /// Worker architecture: arm64 or amd64 [default: any]
    #[arg(long, value_parser = pairs::one_of::<Arch>)]
    arch: Option<Arch>,
    /// Runtime: tart, vetu, qemu or synthetic [default: any]
    #[arg(long, value_parser = pairs::one_of::<RuntimeKind>)]
    runtime: Option<RuntimeKind>,
    /// When the image is fetched: IfNotPresent (the worker does not have it) or Always (before each creation; by QEMU
    /// only if the server has another one by now)
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = pairs::one_of::<ImagePullPolicy>)]
    image_pull_policy: ImagePullPolicy,
    /// Make the guest part of the network at this interface of the worker's host (Tart), or at this bridge, if
    /// /etc/qemu/bridge.conf there allows it (QEMU)
    #[arg(long, value_name = "INTERFACE")]
    net_bridged: Option<String>,
    /// Isolate the guest's network with Softnet (Tart)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, hide_default_value = true, hide_possible_values = true, action = clap::ArgAction::Set)]
    net_softnet: bool,
    /// Networks that it may reach all the same; turns Softnet on
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    net_softnet_allow: Vec<String>,
    /// Networks that it may not reach; turns Softnet on
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    net_softnet_block: Vec<String>,
    /// The guest can run VMs itself (Tart, and QEMU with KVM, on hosts that can)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, hide_default_value = true, hide_possible_values = true, action = clap::ArgAction::Set)]
    nested: bool,
    /// Give the guest a serial number of its own (Tart, QEMU)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, hide_default_value = true, hide_possible_values = true, action = clap::ArgAction::Set)]
    random_serial: bool,
    /// Guest user for SSH; of images with cloud-init QEMU has it made, with that password and sudo [default: admin]
    #[arg(long, allow_hyphen_values = true)]
    username: Option<String>,
    /// That user's password [default: admin]; others on this machine can see what stands on a command line
    #[arg(long, allow_hyphen_values = true, conflicts_with_all = ["password_stdin", "password_file"])]
    password: Option<String>,
    /// Read that password from standard input
    #[arg(long, conflicts_with = "password_file")]
    password_stdin: bool,
    /// Read that password from this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A public key that also lets that user in, or @FILE with one on each line; of images with cloud-init, in QEMU
    #[arg(long, value_name = "TEXT|@FILE")]
    ssh_key: Vec<String>,
    /// Script that runs in the guest after each start; @FILE reads it from a file
    #[arg(long, value_name = "TEXT|@FILE", allow_hyphen_values = true)]
    startup_script: Option<String>,
    /// Labels that the worker must have
    #[arg(long, value_name = "K=V,…", value_delimiter = ',', value_parser = pairs::label)]
    labels: Vec<(String, String)>,
    /// Folders of the worker's host that the guest sees, as policies allow (`orchard get cluster-settings`). With QEMU
    /// the guest mounts one with `mount -t 9p -o trans=virtio NAME /mnt`
    #[arg(long, value_name = "NAME:PATH[:ro],…", value_delimiter = ',', value_parser = pairs::one_of::<HostDir>)]
    host_dirs: Vec<HostDir>,
    /// The only worker that will do; the same as --labels worker-name=NAME
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    /// Who is placed first when workers are scarce; higher is sooner
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    priority: i32,
    /// Delete the VM this long after its creation [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Further resources taken from the worker
    #[arg(long, value_name = "K=N,…", value_delimiter = ',', value_parser = pairs::resource)]
    resources: Vec<(String, u64)>,
    /// What happens when the VM fails: Never (it stays so), OnFailure (it starts over from its image) or Always (it boots again
    /// from its own disk)
    #[arg(long, default_value = "Never", value_parser = pairs::one_of::<RestartPolicy>)]
    restart_policy: RestartPolicy,
    /// What happens when its worker is not heard of any more: keep (the VM is left alone) or replace (the worker stops it
    /// when its lease is over, and it starts over elsewhere)
    #[arg(long, value_name = "WHAT", default_value = "keep", value_parser = pairs::one_of::<OnUnseen>)]
    on_unseen: OnUnseen,
    /// The VM can be suspended (not with host directories in QEMU)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, hide_default_value = true, hide_possible_values = true, action = clap::ArgAction::Set)]
    suspendable: bool,
    /// Name of this request: asked again with the same one, the answer is the VM that is there already, and not a second
    /// one or an error [default: a random one, for the retries of this command alone]
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    idempotency_key: Option<String>,
    /// Open no window on the worker's screen; --headless=false opens one
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set)]
    headless: bool,
    #[command(flatten)]
    waiting: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `connect` is called once the options are known to be sound.
pub(super) async fn run<F: Future<Output = anyhow::Result<Client>>>(
    command: Create,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let arguments = match command {
        Create::Vm(arguments) => arguments,
        Create::ServiceAccount(arguments) => return accounts::create(arguments, connect).await,
    };
    let (WaitArgs { wait, timeout }, output) = (arguments.waiting, arguments.output);
    let given = password(&arguments).await?;
    let request = request(*arguments, given)?;
    let client = connect().await?;
    // Listening begins before the VM exists, so that nothing of its story is missed.
    let watch = if wait { Some(wait::Watch::begin(&client, &request.name).await?) } else { None };
    let again = |error: &ApiError| eprintln!("VM {} is not created yet ({error}); trying again", request.name);
    let created = client.create_once(&request, again).await;
    let mut vm = created.with_context(|| format!("cannot create VM {}", request.name))?;
    if let Some(watch) = watch {
        vm = watch.until_ready(&client, &vm, timeout).await?;
    }
    let name = &vm.name;
    let text = || match wait {
        true => format!("VM {name} is ready; `orchard ssh vm {name}` opens a shell in it"),
        false => format!("VM {name} is created; `orchard get vm {name}` shows how far it is"),
    };
    output.done(&vm, |vm| vm.name.to_string(), text)?;
    if !wait && let Some(why) = placing::why_waiting(&vm, &client).await {
        eprintln!("{why}");
    }
    Ok(())
}

/// The guest user's password, wherever it comes from.
async fn password(arguments: &CreateVmArgs) -> anyhow::Result<Option<Secret>> {
    if let Some(path) = &arguments.password_file {
        let cannot = || format!("cannot read the password file {}", path.display());
        let file = std::fs::File::open(path).at(path).with_context(cannot)?;
        return Ok(Some(prompt::password_from(file).with_context(cannot)?));
    }
    if arguments.password_stdin {
        let read = prompt::from_stdin(prompt::password_from).await;
        return Ok(Some(read.context("cannot read the password from standard input")?));
    }
    Ok(arguments.password.as_deref().map(Secret::new))
}

fn request(arguments: CreateVmArgs, password: Option<Secret>) -> anyhow::Result<CreateVm> {
    let startup_script = match arguments.startup_script {
        None => None,
        Some(given) => Some(StartupScript { script_content: script(given)?, env: Default::default() }),
    };
    let mut labels = pairs::labels(arguments.labels).map_err(UsageError)?;
    if let Some(worker) = &arguments.worker
        && labels.insert(WORKER_NAME_LABEL.to_owned(), worker.to_string()).is_some_and(|other| other != worker.as_str())
    {
        let what = format!("--worker and --labels name different workers in {WORKER_NAME_LABEL}; give one of them");
        return Err(UsageError(what).into());
    }
    if arguments.ttl.is_some_and(|ttl| ttl.as_secs() == 0) {
        return Err(UsageError("--ttl is less than a second; leave it out for a VM that stays".to_owned()).into());
    }
    let spec = VmSpec {
        image: arguments.image,
        image_pull_policy: arguments.image_pull_policy,
        os: arguments.os,
        arch: arguments.arch,
        runtime: arguments.runtime,
        cpu: arguments.cpu,
        memory: arguments.memory,
        disk_size: arguments.disk_size,
        firmware: arguments.firmware,
        net_bridged: arguments.net_bridged,
        net_softnet: arguments.net_softnet,
        net_softnet_allow: arguments.net_softnet_allow,
        net_softnet_block: arguments.net_softnet_block,
        nested: arguments.nested,
        random_serial: arguments.random_serial,
        headless: arguments.headless,
        username: arguments.username,
        password,
        ssh_keys: ssh_keys(&arguments.ssh_key)?,
        startup_script,
        restart_policy: arguments.restart_policy,
        on_unseen: arguments.on_unseen,
        power_state: PowerState::Running,
        suspendable: arguments.suspendable,
        resources: pairs::resources(arguments.resources).map_err(UsageError)?,
        labels,
        host_dirs: arguments.host_dirs,
        priority: arguments.priority,
        ttl_s: arguments.ttl.map_or(0, |ttl| ttl.as_secs()),
    };
    if let Some(runtime) = spec.runtime {
        features::check(&spec, runtime).map_err(|error| UsageError(error.message))?;
    }
    // Without one, a request whose answer was lost could not be tried again.
    let key = arguments.idempotency_key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    Ok(CreateVm { name: arguments.name, spec, key: Some(key) })
}

/// The keys themselves, or those out of the files after `@`.
fn ssh_keys(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for given in given {
        let text = match given.strip_prefix('@') {
            Some(path) => {
                let read = std::fs::read_to_string(path).at(Path::new(path));
                read.with_context(|| format!("cannot read the SSH keys in {path:?}"))?
            }
            None => given.clone(),
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            if line.contains("PRIVATE KEY") || line.split_whitespace().count() < 2 {
                let what = "--ssh-key is no public key; they look like \"ssh-ed25519 AAAA… name\", and files of them end in .pub";
                return Err(UsageError(what.to_owned()).into());
            }
            keys.push(line.to_owned());
        }
    }
    Ok(keys)
}

/// The script itself, or out of the file after `@`.
fn script(given: String) -> anyhow::Result<String> {
    use std::io::Read as _;
    let Some(path) = given.strip_prefix('@') else { return Ok(given) };
    let cannot = || format!("cannot read the startup script {path:?}");
    let file = std::fs::File::open(path).at(Path::new(path)).with_context(cannot)?;
    let mut text = String::new();
    file.take(MAX_SCRIPT_BYTES + 1).read_to_string(&mut text).at(Path::new(path)).with_context(cannot)?;
    if text.len() as u64 > MAX_SCRIPT_BYTES {
        anyhow::bail!("the startup script {path:?} is longer than {MAX_SCRIPT_BYTES} bytes; let it fetch the rest");
    }
    Ok(text)
}

/// Reads an image: a file of this machine is named in full, as the worker's current folder is another one.
fn image(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("the image is empty; give a path, an http(s) URL, or a name that the runtime knows".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        if !matches!(scheme, "http" | "https" | "file") || rest.is_empty() {
            let text = redact_urls(text);
            return Err(format!("{text:?} is not an image: of URLs, only http://, https:// and file:// are taken"));
        }
        return Ok(text.to_owned());
    }
    let path = Path::new(text);
    if path.is_absolute() {
        return Ok(text.to_owned());
    }
    if path.is_file() {
        let full: PathBuf = std::path::absolute(path).map_err(|error| format!("{text:?}: {error}"))?;
        // Without the `./` in the middle that `absolute` keeps out already, but with symbolic links as they are: the
        // worker may see another target behind them.
        return full.into_os_string().into_string().map_err(|_| format!("{text:?} is not UTF-8"));
    }
    if text.starts_with("./") || text.starts_with("../") || text.starts_with('~') {
        return Err(format!("there is no file {text:?} here; for one on the worker, give its full path"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        arguments: CreateVmArgs,
    }

    fn parse(arguments: &[&str]) -> anyhow::Result<CreateVm> {
        let all = ["create", "a", "--image", "/i.qcow2"].iter().chain(arguments);
        request(Only::try_parse_from(all)?.arguments, None)
    }

    #[test]
    fn what_is_not_asked_for_is_left_to_the_worker() {
        let spec = parse(&[]).unwrap().spec;
        assert_eq!(spec, VmSpec { image: "/i.qcow2".into(), headless: true, ..VmSpec::default() });
        assert!(!parse(&["--headless=false"]).unwrap().spec.headless);
    }

    #[test]
    fn switches_can_be_said_with_what_they_are_to_be() {
        let of = |arguments: &[&str]| {
            let spec = parse(arguments).unwrap().spec;
            [spec.net_softnet, spec.nested, spec.random_serial, spec.suspendable]
        };
        assert_eq!(of(&["--net-softnet", "--nested", "--random-serial", "--suspendable"]), [true; 4]);
        let said = ["--net-softnet=true", "--nested=false", "--random-serial=true", "--suspendable=false"];
        assert_eq!(of(&said), [true, false, true, false]);
        assert_eq!(of(&[]), [false; 4]);
        assert!(parse(&["--nested=perhaps"]).is_err());
    }

    #[test]
    fn text_may_begin_with_a_hyphen_and_capitals_do_not_matter() {
        let text = ["--startup-script", "-x", "--password", "-p", "--username", "--u", "--idempotency-key", "-k"];
        let given = Only::try_parse_from(["create", "a", "--image", "/i.qcow2"].iter().chain(&text)).unwrap().arguments;
        assert_eq!((given.password.as_deref(), given.username.as_deref()), (Some("-p"), Some("--u")));
        let made = request(given, None).unwrap();
        assert_eq!(
            (made.spec.startup_script.unwrap().script_content, made.key),
            ("-x".to_owned(), Some("-k".to_owned()))
        );
        let spec = parse(&["--restart-policy", "onfailure", "--on-unseen", "Replace", "--os", "LINUX"]).unwrap().spec;
        assert_eq!((spec.restart_policy, spec.os), (RestartPolicy::OnFailure, Some(Os::Linux)));
    }

    #[tokio::test]
    async fn a_password_need_not_stand_on_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = async |given: &[&str]| {
            let all = ["create", "a", "--image", "/i.qcow2"].iter().chain(given);
            let arguments = Only::try_parse_from(all)?.arguments;
            anyhow::Ok(password(&arguments).await?.map(|password| password.expose().to_owned()))
        };
        let file = ["--password-file", path.to_str().unwrap()];
        assert!(format!("{:#}", read(&file).await.unwrap_err()).contains(path.to_str().unwrap()));
        std::fs::write(&path, "two words \n").unwrap();
        assert_eq!(read(&file).await.unwrap().as_deref(), Some("two words "), "all but the end of the line");
        std::fs::write(&path, "\n").unwrap();
        assert!(read(&file).await.is_err());
        assert_eq!(read(&["--password", "x"]).await.unwrap().as_deref(), Some("x"));
        assert_eq!(read(&[]).await.unwrap(), None);
        assert!(read(&[&file[..], &["--password", "x"]].concat()).await.is_err());
    }

    #[test]
    fn each_request_has_a_key_of_its_own_unless_one_is_given() {
        let key = |arguments: &[&str]| parse(arguments).unwrap().key;
        assert_ne!(key(&[]), key(&[]));
        assert_eq!(key(&["--idempotency-key", "k"]).as_deref(), Some("k"));
    }

    #[test]
    fn lists_may_be_given_in_one_or_in_several() {
        let spec = parse(&["--labels", "a=1,b=2", "--labels", "c=3", "--resources", "gpu=1"]).unwrap().spec;
        assert_eq!(spec.labels.len(), 3);
        assert_eq!(spec.resources.get("gpu"), 1);
        assert!(parse(&["--labels", "a=1,a=2"]).unwrap_err().is::<UsageError>());
        for bad in [["--labels", "a"], ["--resources", "a=x"], ["--restart-policy", "Sometimes"], ["--os", "windows"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_worker_is_a_label_like_others() {
        let spec = parse(&["--worker", "w1", "--priority", "-2", "--ttl", "2h"]).unwrap().spec;
        assert_eq!(spec.labels, [(WORKER_NAME_LABEL.to_owned(), "w1".to_owned())].into());
        assert_eq!((spec.priority, spec.ttl_s), (-2, 7_200));
        assert!(parse(&["--worker", "w1", "--labels", "worker-name=w1"]).is_ok());
        for bad in [vec!["--worker", "w1", "--labels", "worker-name=w2"], vec!["--ttl", "0"]] {
            assert!(parse(&bad).unwrap_err().is::<UsageError>(), "{bad:?}");
        }
    }

    #[test]
    fn a_startup_script_is_text_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sh");
        std::fs::write(&path, "echo hi\n").unwrap();
        let script = |given: &str| parse(&["--startup-script", given]).map(|r| r.spec.startup_script.unwrap());
        assert_eq!(script("echo ho").unwrap().script_content, "echo ho");
        assert_eq!(script(&format!("@{}", path.display())).unwrap().script_content, "echo hi\n");
        assert!(script("@/nonexistent").unwrap_err().to_string().contains("/nonexistent"));
        std::fs::write(&path, vec![b'x'; usize::try_from(MAX_SCRIPT_BYTES).unwrap() + 1]).unwrap();
        assert!(script(&format!("@{}", path.display())).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn public_keys_are_read_and_private_ones_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = dir.path().join("key");
            std::fs::write(&path, text).unwrap();
            format!("@{}", path.display())
        };
        let keys = ["ssh-ed25519 AAAA ann".to_owned(), file("# mine\n\nssh-rsa BBBB bob\nssh-rsa CCCC\n")];
        assert_eq!(ssh_keys(&keys).unwrap(), ["ssh-ed25519 AAAA ann", "ssh-rsa BBBB bob", "ssh-rsa CCCC"]);
        assert!(ssh_keys(&[file("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")]).is_err());
        assert!(ssh_keys(&["@/nonexistent".to_owned()]).is_err());
    }

    #[test]
    fn an_image_of_this_machine_is_named_in_full() {
        let own = image("Cargo.toml").unwrap();
        assert!(own.starts_with('/') && own.ends_with("/Cargo.toml"), "{own}");
        for same in [
            "/on/the/worker.qcow2",
            "https://example.com/i.qcow2",
            "file:///i.qcow2",
            "ghcr.io/cirruslabs/macos:latest",
        ] {
            assert_eq!(image(same).as_deref(), Ok(same));
        }
        for bad in ["", " ", "./missing.qcow2", "~/x", "ftp://x/y", "http://"] {
            assert!(image(bad).is_err(), "{bad:?}");
        }
    }
}
