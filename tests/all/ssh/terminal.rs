//! The user's own terminal, in a pseudo-terminal made by `script`.

use std::env;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio as ChildStdio};

use orchard::ssh::client::Program;
use orchard::ssh::terminal;

use super::session;

/// Run by the next test within a terminal of its own.
#[tokio::test]
#[ignore = "needs a terminal; the_users_terminal_is_used_and_restored runs it in one"]
async fn inner_terminal() {
    if !terminal::is_interactive() {
        return eprintln!("SKIPPED: inner_terminal needs a terminal");
    }
    let settings = || Command::new("stty").arg("-g").stdin(ChildStdio::inherit()).output().unwrap().stdout;
    let before = settings();
    let (_vm, session) = session().await;
    let status =
        terminal::interactive(&session, Program::LoginShell, tokio::sync::watch::channel(false).1).await.unwrap();
    let restored = if settings() == before { "restored" } else { "CHANGED" };
    println!("inner: {status}, terminal {restored}");
}

#[test]
fn the_users_terminal_is_used_and_restored() {
    if !Path::new("/usr/bin/script").exists() {
        return eprintln!("SKIPPED: the terminal test needs script (package bsdutils)");
    }
    let inner = format!(
        "{} --ignored --exact ssh::terminal::inner_terminal --nocapture",
        env::current_exe().unwrap().display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &inner, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
    let mut child = script.stdin(ChildStdio::piped()).stdout(ChildStdio::piped()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut until = |what: &str| {
        let mut chunk = [0; 1024];
        while !String::from_utf8_lossy(&seen).contains(what) {
            let count = screen.read(&mut chunk).unwrap();
            assert!(count > 0, "ended before {what:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..count]);
        }
    };
    until("guest-1$ ");
    keyboard.write_all(b"hostname\r").unwrap(); // a carriage return ends the line only in raw mode
    until("hostname\r\nguest-1\r\n");
    keyboard.write_all(b"exit 6\r").unwrap();
    until("inner: exit status 6, terminal restored");
    // no further key: the keyboard is still there, and yet the program ends
    assert!(child.wait().unwrap().success());
    drop(keyboard);
}
