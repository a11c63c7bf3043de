//! Manual pages: one a command, and nothing in them that a formatter finds wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn orchard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orchard")).args(arguments).output().unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command, as `--help` of those above names them: words without `orchard`.
fn commands(above: &[&str]) -> Vec<Vec<String>> {
    let help = text(orchard(&[above, &["--help"]].concat()));
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let named = |line: &str| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')).map(str::to_owned);
    let names = listed.lines().filter_map(named).filter_map(|line| line.split(' ').next().map(str::to_owned));
    let mut found = vec![above.iter().map(|word| (*word).to_owned()).collect()];
    for name in names.filter(|name| name != "help") {
        found.extend(commands(&[above, &[name.as_str()]].concat()));
    }
    found
}

/// What groff has to say against a page: everything it can warn of.
fn complaints(page: &Path) -> String {
    let output = Command::new("groff").args(["-ww", "-K", "utf8", "-man", "-Tutf8", "-z"]).arg(page).output().unwrap();
    format!("{}{}", if output.status.success() { "" } else { "failed\n" }, String::from_utf8_lossy(&output.stderr))
}

#[test]
fn each_command_has_a_page_and_groff_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    text(orchard(&["man", "--dir", folder.to_str().unwrap()]));
    let written: BTreeSet<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let commands = commands(&[]);
    let page = |words: &Vec<String>| format!("{}.1", [&["orchard".to_owned()], &words[..]].concat().join("-"));
    assert_eq!(written, commands.iter().map(page).collect(), "pages and commands differ");
    assert!(written.len() > 80 && written.contains("orchard-create-vm.1"), "{written:?}");
    for page in &written {
        assert_eq!(complaints(&folder.join(page)), "", "{page}");
    }
}

#[test]
fn a_page_reads_as_help_does() {
    let page = text(orchard(&["man", "ssh", "vm"]));
    let mut groff = Command::new("groff");
    groff.args(["-K", "utf8", "-man", "-Tascii", "-P", "-cbou"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page");
    std::fs::write(&file, &page).unwrap();
    let shown = text(groff.arg(&file).output().unwrap());
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    for line in
        ["EXAMPLES", "orchard ssh vm build-1 uname -a", "SYNOPSIS", "orchard ssh vm build-1 'sh -s' < script.sh"]
    {
        assert!(lines.contains(&line), "no {line:?} in {shown}");
    }
    assert!(shown.contains("orchard-ssh-vm - Run a command or a shell in a VM"), "{shown}");
}

#[test]
fn a_command_that_is_not_there_has_no_page() {
    let output = orchard(&["man", "frobnicate"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.contains("no command \"frobnicate\"")), (Some(2), true), "{told}");
}
