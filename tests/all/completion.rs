//! Completion as shells ask for it: the script that `orchard completion` prints, in a real shell, with names out of a real cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::worker::runtime::synthetic::Synthetic;
use tokio::process::Command;

use crate::harness::{Cluster, LIMIT, succeed};
use crate::terminal::{Screen, Terminal, client};
use crate::wait::until;

/// What bash does when Tab is pressed at the end of a line, without the terminal: the line, and the words that bash makes of it.
const TAB: &str = r#"
source <(orchard completion bash) || exit 1
[[ $(complete -p orchard) == *_complete_orchard* ]] || exit 1
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
begun="${COMP_WORDS[COMP_CWORD]}"
[[ "$begun" =~ ^[=:]+$ ]] && begun=
_complete_orchard orchard "$begun" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Words as bash splits them, at `=` and `:`, too.
fn split(words: &[&str]) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for word in words {
        let is_break = |c: char| matches!(c, '=' | ':');
        pieces.push(String::new());
        let mut last = None;
        for c in word.chars() {
            if last.is_some_and(|last: char| is_break(last) != is_break(c)) {
                pieces.push(String::new());
            }
            pieces.last_mut().unwrap().push(c);
            last = Some(c);
        }
    }
    pieces
}

/// `program` with the environment of somebody for whom `orchard` is installed.
fn shell(cluster: &Cluster, program: &str) -> Command {
    let orchard = cluster.cli(&[]);
    let mut command = Command::new(program);
    for (name, value) in orchard.as_std().get_envs() {
        command.env(name, value.unwrap());
    }
    let own = Path::new(env!("CARGO_BIN_EXE_orchard")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", own.display())).stdin(std::process::Stdio::null()).kill_on_drop(true);
    command
}

/// What bash offers for the last of these words, in the end: the program is silent when the controller's answer is not there
/// within a second, which on a busy machine happens.
async fn offered(cluster: &Cluster, words: &[&str], wanted: &[&str]) {
    until(&format!("what is offered for {words:?}"), LIMIT, || async {
        let offered = offers(cluster, words).await;
        if offered == wanted { Ok(()) } else { Err(offered) }
    })
    .await;
}

async fn offers(cluster: &Cluster, words: &[&str]) -> Vec<String> {
    let mut bash = shell(cluster, "bash");
    bash.args(["--norc", "-c", TAB, "bash", &words.join(" ")]).args(split(words));
    succeed(bash).await.split_whitespace().map(str::to_owned).collect()
}

/// What fish is offered behind these words, in the end: without bash, and for the tests of what is offered.
pub async fn offered_next(cluster: &Cluster, words: &[&str], wanted: &str) {
    until(&format!("what is offered behind {words:?}"), LIMIT, || async {
        let mut ask = cluster.cli(&[&["--", "orchard"], words, &[""]].concat());
        ask.env("ORCHARD_COMPLETE", "fish");
        let offered = succeed(ask).await;
        let found = offered.lines().any(|line| line.split('\t').next() == Some(wanted));
        if found { Ok(()) } else { Err(offered) }
    })
    .await;
}

async fn cluster() -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("mini-1", Arc::new(Synthetic::new())).await;
    for name in ["hello", "help-desk", "other"] {
        cluster.run(&["create", "vm", name, "--image", "any"]).await;
    }
    cluster.run(&["create", "service-account", "ci", "--roles", "compute:read"]).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_offers_what_there_is_in_the_cluster() {
    let cluster = cluster().await;
    offered(&cluster, &["orchard", "ssh", "vm", "h"], &["hello", "help-desk"]).await;
    offered(&cluster, &["orchard", "delete", "vm", "hello", "o"], &["other"]).await;
    offered(&cluster, &["orchard", "events", "--vm", "hell"], &["hello"]).await;
    offered(&cluster, &["orchard", "drain", "worker", "m"], &["mini-1"]).await;
    offered(&cluster, &["orchard", "rotate", "service-account", "c"], &["ci"]).await;
    offered(&cluster, &["orchard", "cp", "hel"], &["hello:", "help-desk:"]).await;
    // Commands and options, and no names for what is to be made.
    offered(&cluster, &["orchard", "port"], &["port-forward"]).await;
    offered(&cluster, &["orchard", "list", "vms", "--qu"], &["--quiet"]).await;
    assert_eq!(offers(&cluster, &["orchard", "create", "vm", "h"]).await, [] as [&str; 0]);
    offered(&cluster, &["orchard", "create", "vm", "x", "--worker", "m"], &["mini-1"]).await;
    // Words of options.
    offered(&cluster, &["orchard", "list", "vms", "--output=js"], &["json"]).await;
    offered(&cluster, &["orchard", "create", "vm", "x", "--restart-policy", "O"], &["OnFailure"]).await;
    let roles = ["orchard", "create", "service-account", "x", "--roles", "compute:read,compute:w"];
    offered(&cluster, &roles, &["write"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_offers_ids_fields_and_what_was_asked_for() {
    let cluster = cluster().await;
    let id = cluster.json(&["get", "bootstrap-token"]).await["id"].as_str().unwrap().to_owned();
    offered(&cluster, &["orchard", "delete", "bootstrap-token", &id[..1]], &[&id]).await;
    cluster.run(&["pull", "image", "https://images.example/a.qcow2"]).await;
    offered(&cluster, &["orchard", "pull", "image", "--cancel", "h"], &["https://images.example/a.qcow2"]).await;
    assert_eq!(offers(&cluster, &["orchard", "pull", "image", "h"]).await, [] as [&str; 0]);
    offered(&cluster, &["orchard", "get", "vm", "oth"], &["other"]).await;
    offered(&cluster, &["orchard", "get", "vm", "other/status_"], &["other/status_message"]).await;
    offered(&cluster, &["orchard", "get", "worker", "mini-1/last"], &["mini-1/last_seen"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_offered_and_the_one_on_the_line_is_asked() {
    let cluster = cluster().await;
    let fingerprint = cluster.controller.fingerprint().unwrap().to_string();
    let token = cluster.access.token.expose();
    let url = &cluster.access.url;
    let mut create = cluster.cli(&["context", "create", url, "--name", "prod", "--fingerprint", &fingerprint]);
    create.args(["--service-account-name", "bootstrap-admin", "--service-account-token", token]);
    succeed(create).await;
    offered(&cluster, &["orchard", "context", "default", "p"], &["prod"]).await;
    offered(&cluster, &["orchard", "--context", "p"], &["prod"]).await;
    // Nobody listens where the environment points to.
    until("the name", LIMIT, || async {
        let mut bash = shell(&cluster, "bash");
        bash.env("ORCHARD_URL", "tls://127.0.0.1:1");
        bash.args(["--norc", "-c", TAB, "bash", "orchard", "--context", "prod", "get", "vm", "o"]);
        let offered = succeed(bash).await;
        if offered.trim() == "other" { Ok(()) } else { Err(offered) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_cannot_be_reached_is_not_waited_for() {
    let cluster = Cluster::start().await;
    // One that takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for url in [format!("tls://{}", silent.local_addr().unwrap()), "tls://127.0.0.1:1".to_owned()] {
        let mut ask = cluster.cli(&["--", "orchard", "ssh", "vm", "h"]);
        ask.env("ORCHARD_COMPLETE", "fish").env("ORCHARD_URL", &url);
        // The bound is a second; this machine may be busy, but not each time.
        let (soon, mut quickest) = (Duration::from_secs(8), Duration::MAX);
        for _ in 0..3 {
            let began = Instant::now();
            let output = ask.output().await.unwrap();
            quickest = quickest.min(began.elapsed());
            let silent = output.stdout.is_empty() && output.stderr.is_empty();
            assert!(output.status.success() && silent, "{url}: {output:?}");
            if quickest < soon {
                break;
            }
        }
        assert!(quickest < soon, "{url}: {quickest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_gets_a_script_and_answers() {
    let cluster = cluster().await;
    for (name, sign) in [("bash", "complete -o"), ("zsh", "#compdef orchard"), ("fish", "complete --keep-order")] {
        let script = cluster.run(&["completion", name]).await;
        assert!(script.contains(sign) && script.contains("ORCHARD_COMPLETE"), "{name}: {script}");
        until(name, LIMIT, || async {
            let mut ask = cluster.cli(&["--", "orchard", "ssh", "vm", "h"]);
            ask.env("ORCHARD_COMPLETE", name).env("_CLAP_COMPLETE_INDEX", "3").env("_CLAP_IFS", "\n");
            let answered = succeed(ask).await;
            if answered.lines().eq(["hello", "help-desk"]) { Ok(()) } else { Err(answered) }
        })
        .await;
    }
}

/// A shell as somebody uses it: how it is started, and what they have in its start file.
const SHELLS: &[(&str, &[&str], &str)] = &[
    ("bash", &["--norc", "--noprofile", "-i"], "source <(orchard completion bash)"),
    ("zsh", &["-f", "-i"], "autoload -Uz compinit; compinit -u -D; source <(orchard completion zsh)"),
    ("fish", &["--no-config"], "orchard completion fish | source; function fish_prompt; printf 'ready> '; end"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_person_presses_tab_in_each_shell() {
    let Some(python) = client("python") else { return };
    let cluster = cluster().await;
    for (name, arguments, setup) in SHELLS {
        let mut command = shell(&cluster, name);
        command.args(*arguments).env("PS1", "ready> ").env("HOME", cluster.dir.path());
        let mut terminal = Terminal::start(python.clone(), &command);
        terminal.until("a prompt", |screen| !screen.last().is_empty()).await;
        terminal.keys(&format!("{setup}; clear\r")).await;
        terminal.until(name, |screen| screen.lines[0] == "ready>" && screen.last() == "ready>").await;
        terminal.keys("orchard get vm --output=js\toth").await;
        // As above, there may be no answer within a second. A letter behind it shows when Tab has done what it does.
        let typed = |screen: &Screen| screen.lines[0].strip_suffix('x').map(|line| line.trim_end().to_owned());
        let (began, mut line) = (Instant::now(), String::new());
        while line != "ready> orchard get vm --output=json other" {
            assert!(began.elapsed() < LIMIT, "{name} offers no name: {line}");
            terminal.keys("\tx").await;
            let screen = terminal.until(name, |screen| typed(screen).is_some()).await;
            line = typed(&screen).unwrap();
            terminal.keys("\x7f").await;
            terminal.until(name, |screen| typed(screen).is_none()).await;
        }
        // The word is whole: what follows is the next one.
        terminal.keys("| grep -c '\"image\": \"any\"'\r").await;
        terminal.until(name, |screen| screen.lines[1] == "1").await;
    }
}
