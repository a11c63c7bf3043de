//! A person at a terminal, and what its screen shows: `tests/fixtures/terminal.py` emulates a VT100 around a command.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT};
use crate::real::QemuCluster;
use crate::stock::scripts::installed;
use crate::wait;

/// A program of the folder of stock clients, which tests/run.sh makes; none, loudly, without that.
pub fn client(name: &str) -> Option<PathBuf> {
    Some(installed("ORCHARD_TEST_CLIENTS", name)?.join(name))
}

/// A terminal in which a command runs; that is killed with it.
pub struct Terminal {
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// What a person sees.
#[derive(Clone, Debug)]
pub struct Screen {
    pub lines: Vec<String>,
    /// The command's exit code once it has ended.
    pub ended: Option<i64>,
    /// The terminal's settings are those from before.
    pub restored: bool,
}

impl Screen {
    pub fn has(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    /// The last line that has anything on it.
    pub fn last(&self) -> &str {
        self.lines.iter().rev().find(|line| !line.is_empty()).map_or("", String::as_str)
    }
}

impl Terminal {
    pub fn start(python: PathBuf, orchard: &Command) -> Self {
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/terminal.py"));
        command.arg(orchard.as_std().get_program()).args(orchard.as_std().get_args());
        for (name, value) in orchard.as_std().get_envs() {
            command.env(name, value.unwrap());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { commands: child.stdin.take().unwrap(), answers, _child: child }
    }

    async fn order(&mut self, order: Value) {
        self.commands.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    pub async fn keys(&mut self, keys: &str) {
        self.order(json!({ "type": keys })).await;
    }

    pub async fn resize(&mut self, rows: u16, columns: u16) {
        self.order(json!({ "resize": [rows, columns] })).await;
    }

    pub async fn screen(&mut self) -> Screen {
        self.order(json!({ "show": true })).await;
        let line = tokio::time::timeout(LIMIT, self.answers.next_line()).await.expect("the terminal hangs").unwrap();
        let shown: Value = serde_json::from_str(&line.expect("the terminal is gone")).unwrap();
        let lines = shown["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
        Screen { lines, ended: shown["ended"].as_i64(), restored: shown["restored"].as_bool().unwrap() }
    }

    /// The screen once it `is` as a person waits for it.
    pub async fn until(&mut self, what: &str, is: impl Fn(&Screen) -> bool) -> Screen {
        let terminal = tokio::sync::Mutex::new(self);
        wait::until(what, LIMIT, || async {
            let screen = terminal.lock().await.screen().await;
            if is(&screen) { Ok(screen) } else { Err(screen) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_a_terminal_works_in_a_real_guest() {
    let Some(python) = client("python") else { return };
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
    let mut terminal = Terminal::start(python, &cluster.cli(&["ssh", "vm", "box"]));
    let prompt = |screen: &Screen| screen.last() == "admin@box:~$";
    let screen = terminal.until("a prompt", prompt).await;
    assert!(!screen.restored, "its keys are the guest's");
    the_window_has_the_size_of_the_terminal(&mut terminal).await;
    ctrl_c_is_the_guests(&mut terminal).await;
    a_full_screen_program_is_drawn_and_left(&mut terminal).await;
    // A shell that was left with Ctrl-C's status would say so.
    terminal.keys("clear; (exit 7); exit\r").await;
    let screen = terminal.until("the end", |screen| screen.ended.is_some()).await;
    assert_eq!((screen.ended, screen.restored), (Some(7), true), "{screen:?}");
    what_is_typed_into_a_program_reaches_it(cluster).await;
}

async fn the_window_has_the_size_of_the_terminal(terminal: &mut Terminal) {
    terminal.keys("stty size\r").await;
    terminal.until("the size of the window", |screen| screen.has("24 80")).await;
    // The guest is told at once, not when somebody asks.
    terminal.keys("sh -c 'trap \"stty size\" WINCH; echo waiti\"\"ng; while :; do sleep 1; done'\r").await;
    terminal.until("the loop", |screen| screen.has("waiting")).await;
    terminal.resize(30, 100).await;
    terminal.until("the guest to see the new size", |screen| screen.has("30 100")).await;
    terminal.resize(18, 66).await;
    terminal.until("the guest to see a smaller size", |screen| screen.has("18 66")).await;
}

/// Ends the loop that runs, and then a command in the middle of a line; the client is there all along.
async fn ctrl_c_is_the_guests(terminal: &mut Terminal) {
    terminal.keys("\x03").await;
    terminal.keys("clear; echo be''gun; sleep 1000; echo never''theless\r").await;
    let screen = terminal.until("a command that goes on", |screen| screen.last() == "begun").await;
    assert_eq!(screen.ended, None);
    terminal.keys("\x03").await;
    terminal.keys("echo status $?\r").await;
    let screen = terminal.until("the command to be interrupted", |screen| screen.has("status 130")).await;
    assert!(!screen.has("nevertheless") && screen.ended.is_none(), "{screen:?}");
}

async fn a_full_screen_program_is_drawn_and_left(terminal: &mut Terminal) {
    terminal.resize(24, 80).await;
    terminal.keys("clear; printf 'first line\\nsecond line\\n' > note; vi note\r").await;
    let screen = terminal.until("the editor", |screen| screen.lines[23].contains("note")).await;
    assert_eq!(screen.lines[..3], ["first line", "second line", "~"], "{screen:?}");
    assert!(screen.lines[2..23].iter().all(|line| line == "~"), "{screen:?}");
    // Drawn anew for another size of the window.
    terminal.resize(12, 60).await;
    let fits =
        |screen: &Screen| screen.lines.len() == 12 && screen.lines[11].contains("note") && screen.lines[10] == "~";
    terminal.until("the editor in a smaller window", fits).await;
    // Arrows, a line below the last, and out.
    terminal.keys("\x1b[Bothird line").await;
    let screen = terminal.until("what was typed", |screen| screen.has("third line")).await;
    assert_eq!(screen.lines[..4], ["first line", "second line", "third line", "~"], "{screen:?}");
    // What follows Escape too soon is taken for the rest of another key.
    terminal.keys("\x1b").await;
    terminal.until("the end of typing", |screen| screen.lines[11].starts_with("- note")).await;
    terminal.keys(":wq\r").await;
    terminal.until("the prompt behind the editor", |screen| screen.last() == "admin@box:~$").await;
    terminal.keys("clear; grep -n . note\r").await;
    terminal.until("what was written", |screen| screen.has("3:third line")).await;
}

/// What the editor wrote is there for others.
async fn what_is_typed_into_a_program_reaches_it(cluster: &Cluster) {
    assert_eq!(cluster.run(&["ssh", "vm", "box", "cat note"]).await, "first line\nsecond line\nthird line\n");
}
