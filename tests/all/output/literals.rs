//! No error is said for the first time to a user: each text of one in `src/cli` stands in some test, or in a file of what is
//! expected.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Behind these an error's text begins, or the text of what was being done when it came.
const OPENINGS: [&str; 9] = [
    "bail!(",
    "ensure!(",
    "anyhow!(",
    "UsageError(",
    ".context(",
    "with_context(|| ",
    "let what = ",
    "let why = ",
    "let cannot = || ",
];

/// Shorter pieces between what is filled in say nothing of their own.
const PIECE: usize = 12;

/// What no test brings about, with the reason.
const UNTESTED: &[(&str, &str)] = &[
    ("it is not known who you are here", "the system has no name for the user of this process"),
    ("cannot start the runtime", "the system has no memory or no threads left"),
    ("was cut short", "a thread of this process panicked"),
    ("is not known to clap_complete", "all that the option takes are known"),
    ("the worker gave an answer that does not fit", "a worker of another make"),
    ("it is not known how the session's command ended", "a worker of another make"),
    ("the controller's answer", "a controller of another make"),
    ("the controller's own address", "a controller of another make"),
    ("nothing is saved: the login is good, but no controller answers", "it died within milliseconds"),
    ("there is no host and port in", "an address was read before that has both"),
    ("there is no command to run", "clap asks for one"),
    ("cannot take over", "the system refuses signal handlers"),
    ("cannot find out the local port", "the system has just given it"),
    ("cannot find out where this program is", "the system knows"),
    ("cannot read the standard input", "the system refuses what is open"),
    ("cannot make a PNG of the picture", "written to memory"),
    ("no answer", "the terminal is taken away while a question stands there"),
    ("is there, but was not followed until it is ready", "the account loses its role while it waits"),
    ("the request was not waited for to its end", "the account loses its role while it waits"),
    ("cannot look at", "the system refuses what it has just allowed"),
    ("cannot replace", "the same"),
    ("cannot write in", "the same"),
    ("cannot make the page", "written to memory"),
    ("a second name of no file", "the archive's reader gives one to every link"),
    ("is no second name", "told as the system's reason why there is none"),
    ("the guest sent no archive", "reading begins with the first entry"),
    ("its SSH server has not answered for", "a minute of silence"),
    ("no way into it was open in time", "a controller that takes a request and is silent"),
    ("a key that was not among the proofs", "one that was asked for a moment ago"),
    ("cannot ask on this terminal", "the terminal refuses what it has just allowed"),
    ("has no name that is text", "a folder of another system's making"),
    ("the link to session", "typed while the link breaks"),
    ("changed while it was copied", "a file that shrinks within a moment"),
    ("the guest sent a second name of what is no file", "of many things that a hostile guest may send"),
    ("the guest sent more than an archive", "a mebibyte behind its end"),
    ("the guest sent too many folders and links", "a hundred thousand of them"),
    ("is no name for a copy", "the system's own names end otherwise"),
    (
        "the controller did not answer within",
        "one that lets in and then is silent; who does not let in is told of before",
    ),
    ("shows who may", "tests may be run by root, who may everything"),
    ("copying was interrupted", "the guest is taken away in the middle of a copy"),
];

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, all),
            false => all.push(path),
        }
    }
}

fn under(folder: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut all);
    all.sort();
    all
}

/// Text as it is printed: without the breaks of lines in literals.
fn flat(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("\\\n") {
        text.push_str(before);
        rest = after.trim_start();
    }
    text.push_str(rest);
    text.replace("\\\"", "\"").replace("\\n", "\n")
}

/// The first literal of `source`, if one comes before the statement is over.
fn literal(source: &str) -> Option<String> {
    let end = source.find(';').unwrap_or(source.len());
    let begin = source.get(..end)?.find('"')? + 1;
    let (mut text, mut escaped) = (String::new(), false);
    for c in source.get(begin..)?.chars() {
        match c {
            '"' if !escaped => return Some(text),
            _ => text.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

/// The pieces of a text between what is filled in.
fn pieces(text: &str) -> Vec<String> {
    let text = flat(text);
    let pieces = text.split(['{', '\n']).map(|part| part.split_once('}').map_or(part, |(_, behind)| behind));
    pieces.map(str::trim).filter(|piece| piece.len() >= PIECE).map(str::to_owned).collect()
}

#[test]
fn each_text_of_an_error_is_in_some_test() {
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
    let own = |path: &PathBuf| path.ends_with("output/literals.rs");
    let mut tests: String = under("tests").iter().filter(|path| !own(path)).map(|path| flat(&read(path))).collect();
    let mut texts = BTreeSet::new();
    for path in under("src/cli") {
        let source = read(&path);
        let (code, unit) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
        tests.push_str(&flat(unit));
        // Each of `serve` is of a process that serves, whose starts have tests of their own.
        if path.components().any(|part| part.as_os_str() == "serve") || path.ends_with("tests.rs") {
            continue;
        }
        for opening in OPENINGS {
            for (at, _) in code.match_indices(opening) {
                texts.extend(literal(&code[at + opening.len()..]).map(|text| (path.clone(), text)));
            }
        }
    }
    assert!(texts.len() > 60, "the search finds too little: {texts:?}");
    let mut used = BTreeSet::new();
    let mut missing = Vec::new();
    for (path, text) in &texts {
        let pieces = pieces(text);
        let allowed = UNTESTED.iter().find(|(known, _)| flat(text).contains(known));
        match allowed {
            Some((known, _)) => drop(used.insert(*known)),
            None if pieces.iter().all(|piece| tests.contains(piece)) => {}
            None => missing.push(format!("{}: {text:?}", path.display())),
        }
    }
    assert!(missing.is_empty(), "no test has these texts:\n{}", missing.join("\n"));
    for (known, reason) in UNTESTED {
        assert!(
            used.contains(known) || *known == "cannot start the runtime",
            "{known:?} ({reason}) is nowhere any more"
        );
    }
}

#[test]
fn texts_are_found_as_they_are_printed() {
    let source = "bail!(\n  \"VM {name} is \\\n    not off; \\\"x\\\" it goes on by {itself}\");";
    let text = literal(&source[6..]).unwrap();
    assert_eq!(pieces(&text), ["is not off; \"x\" it goes on by"]);
    assert_eq!(literal("name); let x = \"y\""), None);
}
