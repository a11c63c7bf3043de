//! The real binary as a user calls it, as far as it needs no controller: help, wrong use, files of the home folder.

use std::process::{Command, Output};

use tempfile::TempDir;

/// A home folder of its own, and nothing of the caller's environment.
struct User {
    home: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchard"));
        command
            .args(arguments)
            .env_clear()
            .env("ORCHARD_HOME", self.home.path().join("home"))
            .env("PATH", "/usr/bin:/bin");
        command.current_dir(self.home.path()).stdin(std::process::Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    fn contexts(&self, text: &str) -> std::path::PathBuf {
        let home = self.home.path().join("home");
        std::fs::create_dir_all(&home).unwrap();
        orchard::identity::write_private(&home.join("orchard.yml"), text.as_bytes()).unwrap();
        home.join("orchard.yml")
    }
}

fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A port on which nobody listens: it was free a moment ago.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const COMMANDS: &[&[&str]] = &[
    &[],
    &["create"],
    &["create", "vm"],
    &["create", "service-account"],
    &["list"],
    &["list", "vms"],
    &["list", "workers"],
    &["list", "service-accounts"],
    &["list", "bootstrap-tokens"],
    &["get"],
    &["get", "vm"],
    &["get", "worker"],
    &["get", "service-account"],
    &["get", "bootstrap-token"],
    &["update"],
    &["update", "service-account"],
    &["update", "vm"],
    &["stop"],
    &["stop", "vm"],
    &["start"],
    &["start", "vm"],
    &["suspend"],
    &["suspend", "vm"],
    &["rotate"],
    &["rotate", "service-account"],
    &["delete"],
    &["delete", "vm"],
    &["delete", "worker"],
    &["delete", "service-account"],
    &["delete", "bootstrap-token"],
    &["logs"],
    &["logs", "vm"],
    &["events"],
    &["audit"],
    &["top"],
    &["context"],
    &["context", "create"],
    &["context", "list"],
    &["context", "default"],
    &["context", "delete"],
    &["ssh"],
    &["ssh", "vm"],
    &["exec"],
    &["exec", "vm"],
    &["list", "execs"],
    &["cp"],
    &["ip", "vm"],
    &["proxy", "vm"],
    &["ssh-config"],
    &["port-forward"],
    &["port-forward", "vm"],
    &["dev"],
    &["controller"],
    &["controller", "run"],
    &["worker"],
    &["worker", "run"],
    &["worker", "guard"],
    &["broker"],
    &["broker", "run"],
    &["completion"],
    &["man"],
    &["version"],
];

#[test]
fn every_command_has_help() {
    let user = User::new();
    for command in COMMANDS {
        let ran = user.run(&[command, &["--help"][..]].concat());
        assert_eq!(ran.code, 0, "{command:?}: {}", ran.stderr);
        assert!(ran.stdout.contains("Usage: orchard"), "{command:?}: {}", ran.stdout);
    }
    assert!(!user.home.path().join("home").exists(), "help leaves no traces");
}

/// What nobody can mean, with what the answer must hold.
pub const WRONG: &[(&[&str], &str)] = &[
    (&["frobnicate"], "frobnicate"),
    (&["create", "vm", "a"], "--image"),
    (&["create", "vm", "a b", "--image", "/i"], "contains ' '"),
    (&["create", "vm", "a", "--image", ""], "empty"),
    (&["create", "vm", "a", "--image", "./missing.qcow2"], "full path"),
    (&["create", "vm", "a", "--image", "ftp://x/y"], "http://"),
    (&["create", "vm", "a", "--image", "/i", "--password", "p", "--password-stdin"], "cannot be used"),
    (&["create", "vm", "a", "--image", "/i", "--labels", "role"], "KEY=VALUE"),
    (&["create", "vm", "a", "--image", "/i", "--labels", "a=1,a=2"], "given twice"),
    (&["create", "vm", "a", "--image", "/i", "--resources", "gpu=many"], "whole number"),
    (&["create", "vm", "a", "--image", "/i", "--restart-policy", "sometimes"], "OnFailure"),
    (&["create", "vm", "a", "--image", "/i", "--wait", "--timeout", "soon"], "5m30s"),
    (&["port-forward", "vm", "a", "80:"], "8080:80"),
    (&["exec", "vm", "a"], "COMMAND"),
    (&["exec", "vm", "-e", "1A=x", "a", "--", "ls"], "1A"),
    (&["exec", "vm", "-t", "a", "--", "ls"], "terminal"),
    (&["exec", "vm", "--session", "a/b", "a", "--", "ls"], "'/'"),
    (&["exec", "vm", "--attach", "a"], "--session"),
    (&["cp", "a", "b"], "VM:PATH"),
    (&["cp", "a:b", "c:d"], "both"),
    (&["proxy", "vm", "a", "0"], "1..=65535"),
    (&["ssh-config", "--suffix", "*"], "host name"),
    (&["list", "vms", "-q", "-o", "json"], "cannot be used"),
    (&["delete", "vm"], "NAME"),
    (&["dev", "--runtime", "xen"], "synthetic"),
    (&["dev", "--bus-listen", "4222"], "127.0.0.1:4222"),
    (&["worker", "run", "https://ctl"], "tls://"),
    (&["worker", "run", "ctl"], "--token-file"),
    (&["worker", "run", "ctl"], "--bootstrap-token-stdin"),
    (&["worker", "run", "--token-file", "t"], "BUS_URL"),
    (&["worker", "run", "--bootstrap-token", "t", "--bootstrap-token-stdin"], "cannot be used"),
    (&["worker", "run", "ctl", "--bootstrap-token", "t"], "cannot be used"),
    (&["create", "service-account", "a"], "--roles"),
    (&["create", "service-account", "a", "--roles", "compute:all"], "compute:read"),
    (&["create", "service-account", "a", "--roles", "compute:read", "--ttl", "soon"], "5m30s"),
    (&["update", "service-account", "a"], "--roles"),
    (&["update", "vm", "a"], "nothing of VM a is named that is to be changed, such as --priority 5"),
    (&["update", "service-account", "a", "--ttl", "1h", "--no-expiry"], "cannot be used"),
    (&["get", "bootstrap-token", "--uses", "0"], "1..=10000"),
    (&["get", "bootstrap-token", "--uses", "10001"], "1..=10000"),
    (&["get", "bootstrap-token", "--ttl", "0"], "at least 1s"),
    (&["get", "bootstrap-token", "--ttl", "367d"], "at most 366d"),
    (&["create", "service-account", "a", "--roles", "compute:read", "--ttl", "0"], "at least 1s"),
    (&["create", "service-account", "a", "--roles", "compute:read", "--ttl", "4294967295d"], "at most 36525d"),
    (&["update", "service-account", "a", "--ttl", "0s"], "at least 1s"),
    (&["create", "vm", "a", "--image", "/i", "--wait", "--timeout", "9223372036854775807s"], "at most 36525d"),
    (&["ssh", "vm", "a", "--wait", "9223372036854775807s"], "at most 36525d"),
    (&["context", "create", "https://ctl"], "tls://"),
    (&["context", "create", "nats://127.0.0.1", "--no-pki", "--service-account-token", "t"], "plain text"),
    (&["context", "create", "ctl", "--fingerprint", "12:34"], "64 hexadecimal"),
    (&["context", "create", "ctl", "--name", "a b"], "letters"),
    (&["worker", "run", "ctl", "--token-file", "t", "--token-stdin"], "cannot be used"),
    (&["controller", "run", "--bus-user", "u"], "--bus-url"),
    (&["controller", "run", "--lease", "1s"], "5s to 1h"),
    (&["controller", "run", "--bus-url", "nats://x"], "--bus-user"),
    (&["list", "vms", "-o", "xml"], "yaml"),
    (&["logs", "vm", "a", "-o", "name"], "wide"),
    (&["get", "vm", "/status"], "empty"),
    (&["get", "worker", "a b/status"], "' '"),
    (&["version", "--client", "--controller"], "cannot be used"),
];

#[test]
fn wrong_use_exits_with_2_and_says_what_is_right() {
    let user = User::new();
    for (arguments, hint) in WRONG {
        let ran = user.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(hint), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_text_is_refused_where_text_is_wanted() {
    let user = User::new();
    for arguments in [&["list"][..], &["get", "vm"], &["frobnicate"]] {
        let mut command = user.command(arguments);
        let output =
            command.arg(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xff")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.starts_with("error: "), "{arguments:?}: {told}");
    }
}

#[test]
fn without_a_controller_a_user_is_told_how_to_get_one() {
    let user = User::new();
    for arguments in [
        &["list", "vms"][..],
        &["get", "worker", "w"],
        &["delete", "vm", "a"],
        &["logs", "vm", "a"],
        &["events", "--follow"],
        &["ssh", "vm", "a", "true"],
        &["port-forward", "vm", "a", "22"],
        &["exec", "vm", "a", "--", "true"],
        &["exec", "vm", "--session", "s", "a", "--", "true"],
        &["ip", "vm", "a"],
        &["proxy", "vm", "a", "22"],
        &["ssh-config"],
        &["cp", "a:b", "."],
        &["create", "vm", "a", "--image", "/i", "--wait"],
        &["version", "--controller"],
        &["create", "service-account", "a", "--roles", "compute:read"],
        &["list", "service-accounts"],
        &["get", "bootstrap-token"],
        &["delete", "worker", "w"],
        &["audit", "--follow"],
    ] {
        let ran = user.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{arguments:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("orchard dev"), "{}", ran.stderr);
    }
}

#[test]
fn a_controller_that_is_down_is_named() {
    let user = User::new();
    let port = closed_port();
    user.contexts(&format!(
        "default-context: x\ncontexts:\n  x:\n    url: 127.0.0.1:{port}\n    serviceAccountName: a\n    serviceAccountToken: hunter2\n"
    ));
    let ran = user.run(&["list", "vms", "-o", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.starts_with("error: ") && ran.stderr.contains(&format!("tls://127.0.0.1:{port}")),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
}

#[test]
fn the_environment_stands_in_for_a_context() {
    let user = User::new();
    let port = closed_port();
    let mut command = user.command(&["list", "vms"]);
    command.env("ORCHARD_URL", format!("nats://127.0.0.1:{port}"));
    let without = ran(command.output().unwrap());
    assert!(without.stderr.contains("ORCHARD_SERVICE_ACCOUNT_NAME"), "{}", without.stderr);
    command.env("ORCHARD_SERVICE_ACCOUNT_NAME", "a").env("ORCHARD_SERVICE_ACCOUNT_TOKEN", "t");
    let with = ran(command.output().unwrap());
    assert!(with.stderr.contains(&format!("nats://127.0.0.1:{port}")), "{}", with.stderr);
}

#[test]
fn an_environment_that_is_half_set_or_malformed_exits_with_2_and_names_the_variable() {
    let user = User::new();
    user.contexts("default-context: x\ncontexts:\n  x: {url: ctl, serviceAccountName: a, serviceAccountToken: t}\n");
    const NAME: &str = "ORCHARD_SERVICE_ACCOUNT_NAME";
    const TOKEN: &str = "ORCHARD_SERVICE_ACCOUNT_TOKEN";
    for (variables, hints) in [
        (&[(NAME, "a")][..], &[NAME, "ORCHARD_SERVICE_ACCOUNT_TOKEN is not"][..]),
        (&[(TOKEN, "t")], &[TOKEN, "ORCHARD_SERVICE_ACCOUNT_NAME is not"]),
        (
            &[("ORCHARD_URL", "nats://127.0.0.1:1")],
            &["set ORCHARD_SERVICE_ACCOUNT_NAME and ORCHARD_SERVICE_ACCOUNT_TOKEN"],
        ),
        (&[("ORCHARD_URL", "https://ctl"), (NAME, "a"), (TOKEN, "t")], &["ORCHARD_URL", "tls://HOST:PORT"]),
        (&[(NAME, "a b"), (TOKEN, "t")], &[NAME, "' '"]),
        (&[("ORCHARD_FINGERPRINT", "12:34"), (NAME, "a"), (TOKEN, "t")], &["ORCHARD_FINGERPRINT", "64 hexadecimal"]),
    ] {
        let mut command = user.command(&["list", "vms"]);
        command.envs(variables.iter().copied());
        let ran = ran(command.output().unwrap());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{variables:?}: {}", ran.stderr);
        assert!(hints.iter().all(|hint| ran.stderr.contains(hint)), "{variables:?}: {}", ran.stderr);
    }
    let mut command = user.command(&["list", "vms"]);
    let no_folder = ran(command.env("ORCHARD_HOME", "/dev/null").output().unwrap());
    assert!(no_folder.code == 2 && no_folder.stderr.contains("ORCHARD_HOME"), "{}", no_folder.stderr);
    let mut command = user.command(&["list", "vms"]);
    command.env(TOKEN, <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(vec![0xff]));
    let broken = ran(command.output().unwrap());
    assert!(broken.code == 2 && broken.stderr.contains(TOKEN) && broken.stderr.contains("UTF-8"), "{}", broken.stderr);
    let mut command = user.command(&["controller", "run", "--bus-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    let weak = ran(command.env("ORCHARD_BOOTSTRAP_ADMIN_TOKEN", "hunter2").output().unwrap());
    assert!(weak.code == 2 && weak.stderr.contains("ORCHARD_BOOTSTRAP_ADMIN_TOKEN"), "{}", weak.stderr);
    assert!(weak.stderr.contains("32") && !weak.stderr.contains("hunter2"), "{}", weak.stderr);
    assert!(!user.home.path().join("home/controller").exists(), "nothing was made");
}

#[test]
fn a_file_of_contexts_that_others_may_read_is_warned_of() {
    let user = User::new();
    let path = user.contexts("default-context: x\ncontexts:\n  x: {url: '127.0.0.1:1'}\n");
    assert!(!user.run(&["list", "vms"]).stderr.contains("WARNING"));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let warned = user.run(&["list", "vms"]).stderr;
    assert!(warned.contains("WARNING") && warned.contains("0640"), "{warned}");
    assert!(warned.contains(&format!("chmod 600 {}", path.display())), "{warned}");
}

#[test]
fn a_file_of_contexts_that_cannot_be_used_is_named() {
    let user = User::new();
    let path = user.contexts("contexts: [\n");
    let ran = user.run(&["list", "vms"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("cannot find out which controller to use"), "{}", ran.stderr);
    assert!(ran.stderr.contains(path.to_str().unwrap()), "{}", ran.stderr);
    user.contexts("contexts:\n  home: {url: ctl}\n");
    let ran = user.run(&["list", "vms", "--context", "work"]);
    assert!(ran.stderr.contains("\"work\"") && ran.stderr.contains("home"), "{}", ran.stderr);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let ran = user.run(&["list", "vms"]);
    assert!(ran.code == 1 && ran.stderr.contains(path.to_str().unwrap()), "{}", ran.stderr);
}

#[test]
fn the_version_needs_no_controller() {
    let user = User::new();
    let expected = format!("orchard {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(user.run(&["version"]).stdout, expected);
    assert_eq!(user.run(&["--version"]).stdout, expected);
    let json: serde_json::Value = serde_json::from_str(&user.run(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_token_file_that_cannot_be_used_is_named() {
    let user = User::new();
    let run = |file: &str| user.run(&["worker", "run", "ctl", "--runtime", "synthetic", "--token-file", file]);
    let missing = run("missing");
    assert!(missing.code == 1 && missing.stderr.contains("missing"), "{}", missing.stderr);
    std::fs::write(user.home.path().join("empty"), "\n").unwrap();
    let empty = run("empty");
    assert!(empty.code == 1 && empty.stderr.contains("it is empty"), "{}", empty.stderr);
}

#[test]
fn a_machine_without_a_hypervisor_is_no_worker_by_itself() {
    let user = User::new();
    let mut command = user.command(&["worker", "run", "ctl"]);
    command.env("PATH", user.home.path()).env("ORCHARD_TOKEN", "t"); // it gets as far as looking for one
    let ran = ran(command.output().unwrap());
    assert!(ran.code == 1 && ran.stderr.contains("--runtime"), "{}", ran.stderr);
}

#[test]
fn a_data_folder_in_use_is_left_alone() {
    let user = User::new();
    let data = user.home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let lock = std::fs::File::create(data.join("serve.lock")).unwrap();
    lock.lock().unwrap();
    for command in [&["dev", "--runtime", "synthetic"][..], &["controller", "run"]] {
        let ran = user.run(&[command, &["--data-dir", "data"]].concat());
        assert_eq!(ran.code, 1, "{command:?}");
        assert!(ran.stderr.contains("in use") && ran.stderr.contains("--data-dir"), "{}", ran.stderr);
    }
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "nothing was made in it");
    let home = std::fs::metadata(user.home.path().join("home")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&home.permissions()) & 0o777, 0o700);
}
