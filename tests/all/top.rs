//! `orchard top` as a person at a terminal sees it, with a controller that is a process of its own and is killed meanwhile.

use std::path::Path;
use std::sync::Arc;

use orchard::bus::message::ListVms;
use orchard::worker::runtime::synthetic::Synthetic;

use tokio::process::Command;

use crate::contexts::in_terminal;
use crate::harness::{Access, LIMIT, finish, succeed};
use crate::terminal::{Screen, Terminal, client};
use crate::{processes, wait};

const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const ESCAPE: &str = "\x1b";

/// The line of the list that is about this.
fn line<'a>(screen: &'a Screen, start: &str) -> &'a str {
    screen.lines.iter().find(|line| line.starts_with(start)).map_or("", String::as_str)
}

async fn names(access: &Access) -> Vec<String> {
    let page = access.call(&ListVms::default()).await.unwrap();
    page.vms.iter().map(|vm| vm.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_looks_at_a_cluster_and_works_in_it() {
    let Some(python) = client("python") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let (controller, access) = processes::controller(&home, &data, processes::APART, processes::APART).await;
    let (bus, tunnels) = (controller.value("bus").replace("tls://", ""), controller.value("tunnels"));
    let _worker = access.worker("mini", &dir.path().join("worker"), Arc::new(Synthetic::new())).await;
    for name in ["alpha", "beta"] {
        let script = format!("echo hello from {name}");
        let create = ["create", "vm", name, "--image", "any", "--startup-script", &script, "--wait"];
        succeed(access.cli(&home, &create)).await;
    }

    let mut top = Terminal::start(python, &access.cli(&home, &["top"]));
    // The lists and the events come apart from each other, and a worker of a busy machine may be unseen for a moment.
    let all = |screen: &Screen| {
        line(screen, "│> alpha").contains("ready")
            && screen.lines[0].ends_with(" live")
            && screen.has("┌ Workers 1, 1 online ─")
            && screen.has("┌ VMs 2, 2 running ─")
            && line(screen, "│  mini").contains("online")
            && line(screen, "│  beta").contains("mini")
    };
    let screen = top.until("both VMs and their worker", all).await;
    assert!(screen.lines[0].starts_with("orchard top  bootstrap-admin at tls://"), "{screen:?}");
    assert!(!screen.restored, "{screen:?}");
    top.until("their events", |screen| screen.lines[17..23].iter().any(|line| line.contains("vm/beta"))).await;
    what_keys_show(&mut top).await;
    a_shell_takes_the_terminal_and_gives_it_back(&mut top).await;

    controller.kill().await;
    top.until("the outage", |screen| screen.lines[0].contains("reconnecting") && screen.has("│> alpha")).await;
    let (_controller, access) = processes::controller(&home, &data, &bus, &tunnels).await;
    top.until("its end", |screen| screen.lines[0].ends_with(" live")).await;
    succeed(access.cli(&home, &["create", "vm", "gamma", "--image", "any", "--wait"])).await;
    top.until("a VM that is new", |screen| line(screen, "│  gamma").contains("ready")).await;

    a_vm_is_deleted_once_that_is_confirmed(&mut top, &access).await;
    top.keys("q").await;
    let screen = top.until("the end", |screen| screen.ended.is_some()).await;
    assert_eq!((screen.ended, screen.restored), (Some(0), true), "{screen:?}");
}

async fn what_keys_show(top: &mut Terminal) {
    top.keys("?").await;
    top.until("the keys", |screen| screen.has("delete the VM, once confirmed")).await;
    top.keys("?d").await;
    let described = |screen: &Screen| screen.has("┌ VM alpha ─") && line(screen, "│ Name").contains("alpha");
    top.until("what there is to know of a VM", described).await;
    top.keys("q").await;
    top.until("the panes", |screen| screen.has("│> alpha")).await;
    top.keys(&format!("{DOWN}l")).await;
    top.until("a VM's log", |screen| screen.has("│ hello from beta")).await;
    // What follows Escape too soon is taken for the rest of another key.
    top.keys(ESCAPE).await;
    top.until("the panes", |screen| screen.has("│> beta")).await;
    top.keys(&format!("{UP}/bet\r")).await;
    top.until("the filter", |screen| screen.has(" VMs 1 of 2") && screen.has("│> beta")).await;
    top.keys(ESCAPE).await;
    top.until("all again", |screen| screen.has(" VMs 2, ")).await;
    top.resize(30, 100).await;
    top.until("a bigger screen", |screen| screen.lines.len() == 30 && screen.lines[29].starts_with("Tab pane")).await;
    top.resize(24, 80).await;
    top.until("as it was", |screen| screen.lines.len() == 24 && screen.lines[23].starts_with("Tab pane")).await;
}

async fn a_shell_takes_the_terminal_and_gives_it_back(top: &mut Terminal) {
    top.keys("ks").await;
    top.until("a prompt", |screen| screen.last().ends_with("alpha$")).await;
    top.keys("hostname\r").await;
    top.until("an answer", |screen| screen.lines.iter().any(|line| line == "alpha")).await;
    // The window may change meanwhile, of which both are told; that is no key pressed to go back.
    top.resize(30, 100).await;
    top.until("a bigger window", |screen| screen.lines.len() == 30).await;
    top.resize(24, 80).await;
    top.until("as it was", |screen| screen.lines.len() == 24).await;
    top.keys("exit 3\r").await;
    let told = "SSH to VM alpha: exit status: 3; press a key to go back to orchard top";
    top.until("how it ended", |screen| screen.has(told)).await;
    top.keys(" ").await;
    top.until("the panes", |screen| screen.has("│> alpha") && !screen.has("press a key")).await;
}

async fn a_vm_is_deleted_once_that_is_confirmed(top: &mut Terminal, access: &Access) {
    let asked = |screen: &Screen| screen.has("Delete VM beta and its disk?");
    top.keys("jx").await;
    top.until("the question", asked).await;
    top.keys("n").await;
    top.until("no question", |screen| !asked(screen)).await;
    top.keys("x").await;
    top.until("the question again", asked).await;
    assert_eq!(names(access).await, ["alpha", "beta", "gamma"]);
    top.keys("y").await;
    top.until("what came of it", |screen| screen.lines[23] == "VM beta is deleted").await;
    top.until("its end on the screen", |screen| screen.has("│> gamma") && line(screen, "│  beta").is_empty()).await;
    assert_eq!(names(access).await, ["alpha", "gamma"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_it_says_what_to_use_and_a_refusal_leaves_the_terminal_as_it_was() {
    let cluster = crate::harness::Cluster::start().await;
    let output = finish(cluster.cli(&["top"])).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.starts_with("error: orchard top needs a terminal") && told.contains("orchard events --follow"),
        "{told}"
    );

    let mut dumb = cluster.cli(&["top"]);
    let dumb = in_terminal(
        {
            dumb.env("PATH", "/usr/bin:/bin").env("TERM", "dumb");
            dumb
        },
        &[],
    )
    .await;
    assert_eq!(dumb.code, Some(1), "{dumb:?}");
    assert!(dumb.stdout.starts_with("error: orchard top needs a terminal whose cursor moves"), "{dumb:?}");
    assert!(dumb.stdout.contains("`orchard list vms --watch`") && !dumb.stdout.contains('\u{1b}'), "{dumb:?}");

    let Some(python) = client("python") else { return };
    let token = cluster.run(&["create", "service-account", "blind", "--roles", "compute:connect"]).await;
    let access = cluster.access.of("blind", &orchard::model::secret::Secret::new(token.trim()));
    let mut top = Terminal::start(python, &access.cli(&cluster.dir.path().join("home"), &["top"]));
    let screen = top.until("the end", |screen| screen.ended.is_some()).await;
    assert_eq!((screen.ended, screen.restored), (Some(1), true), "{screen:?}");
    assert!(screen.has("compute:read"), "{screen:?}");
}

/// A shell of a person who has `orchard` as `$orchard`, with a `> ` as its prompt.
fn shell(access: &Access, home: &Path) -> Command {
    let orchard = access.cli(home, &[]);
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "--noediting", "-i"]).current_dir(home);
    for (name, value) in orchard.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))) {
        shell.env(name, value);
    }
    shell.env("orchard", orchard.as_std().get_program()).env("PS1", "> ").env("home", home);
    shell
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_stops_it_brings_it_back_and_hangs_it_up_and_no_log_line_is_on_its_screen() {
    let Some(python) = client("python") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let (controller, access) = processes::controller(&home, &data, processes::APART, processes::APART).await;
    let (bus, tunnels) = (controller.value("bus").replace("tls://", ""), controller.value("tunnels"));
    succeed(access.cli(&home, &["create", "vm", "alpha", "--image", "any"])).await;
    let prompt = |screen: &Screen| screen.last() == ">";
    let panes = |screen: &Screen| screen.has("│> alpha") && screen.lines[0].ends_with(" live");

    let mut top = Terminal::start(python, &shell(&access, &home));
    top.until("a prompt", prompt).await;
    // Once with standard error at the terminal, and once into a file, where the log is.
    top.keys("RUST_LOG=debug \"$orchard\" top\r").await;
    top.until("the panes", panes).await;
    controller.kill().await;
    let screen = top.until("the outage", |screen| screen.lines[0].contains("reconnecting")).await;
    assert!(!screen.has("DEBUG") && !screen.has("WARN"), "{screen:?}");
    let (controller, access) = processes::controller(&home, &data, &bus, &tunnels).await;
    let screen = top.until("its end", panes).await;
    assert!(!screen.has("DEBUG") && !screen.has("WARN"), "{screen:?}");

    top.keys("\x1a").await;
    let screen = top.until("the shell's prompt", prompt).await;
    assert!(screen.has("Stopped") && !screen.has("alpha"), "{screen:?}");
    succeed(access.cli(&home, &["create", "vm", "beta", "--image", "any"])).await;
    top.keys("fg\r").await;
    top.until("the panes, and what was made meanwhile", |screen| panes(screen) && screen.has("│  beta")).await;
    top.keys("\x1a").await;
    top.until("the shell's prompt", prompt).await;
    for (signal, code) in [("HUP", 129), ("TERM", 143), ("INT", 130)] {
        top.keys("clear; jobs -p > \"$home/pid\"; fg; echo \"ended with $?\"; stty -a\r").await;
        top.until("the panes", panes).await;
        let pid = std::fs::read_to_string(home.join("pid")).unwrap();
        assert!(Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().await.unwrap().success());
        let screen = top.until("how it ended", |screen| screen.has("ended with") && prompt(screen)).await;
        assert!(screen.has(&format!("ended with {code}")), "{screen:?}");
        assert!(screen.has(" icanon ") && screen.has(" echo "), "{screen:?}");
        top.keys("clear; \"$orchard\" -v top 2>> \"$home/top.log\"\r").await;
        top.until("the panes", panes).await;
        top.keys("\x1a").await;
        top.until("the shell's prompt", prompt).await;
    }
    top.keys("fg\r").await;
    top.until("the panes", panes).await;
    let log = || std::fs::read_to_string(home.join("top.log")).unwrap();
    let before = log().len();
    controller.kill().await;
    top.until("the outage", |screen| screen.lines[0].contains("reconnecting")).await;
    wait::until("lines in the file", LIMIT, || async { if log().len() > before { Ok(()) } else { Err(log()) } }).await;
    top.keys("q").await;
    top.until("the shell's prompt", prompt).await;
}
