//! As much of a shell as the pages use: which words the program is called with, in scripts and where prose speaks of a command.

use std::path::Path;
use std::sync::LazyLock;

/// What stands for a value that only a shell could tell.
const VALUE: &str = "value";

/// The words behind each `orchard` (or `admin`, as `deploy/README.md` calls it) of a script.
pub(super) fn orchards(script: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for command in commands(script) {
        // A function that hands on what it is given.
        if command.iter().any(|word| word.contains("$@")) {
            continue;
        }
        let Some(at) = command.iter().position(|word| word == "orchard" || word == "admin") else { continue };
        // `systemctl restart orchard`, `install -o orchard`: no calls of it. A call begins a command, or ends what leads to one.
        let leads = ["ssh", "env", "runuser", "sudo"];
        if at > 0 && !leads.contains(&command[0].as_str()) && !command[..at].iter().all(|word| word.contains('=')) {
            continue;
        }
        let words: Vec<_> = command[at + 1..].iter().map(|word| value_of(word)).collect();
        // `admin()` begins a function.
        if !words.is_empty() {
            found.push(words);
        }
    }
    found
}

/// What only a person has, as what it may be: a variable as the longest value that the pages have one for, a fingerprint; a
/// public key, which the program reads while it looks at its words, as one.
fn value_of(word: &str) -> String {
    static KEY: LazyLock<String> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("of-the-pages.pub");
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann\n";
        std::fs::write(&path, key).unwrap();
        path.to_str().unwrap().to_owned()
    });
    match word {
        word if word.starts_with('$') => "a".repeat(64),
        word if word.starts_with("~/.ssh/") && word.ends_with(".pub") => KEY.clone(),
        word => word.to_owned(),
    }
}

/// The words of a command that prose speaks of, as somebody could type them; none if it is no command of this program.
///
/// `[…]` is left out, of `a|b` the first is taken, and words in capitals become values of their kind.
pub(super) fn written(span: &str) -> Option<Vec<String>> {
    let rest = span.strip_prefix("orchard ").or_else(|| span.strip_prefix("admin "))?;
    // What the output goes into is no word of the command.
    let rest = rest.split(" | ").next()?;
    let mut text = String::new();
    let mut depth = 0_usize;
    for c in rest.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            c if depth == 0 => text.push(c),
            _ => {}
        }
    }
    let first: Vec<_> = text.split_whitespace().filter_map(|word| word.split('|').next()).collect();
    let words = commands(&first.join(" ")).into_iter().next()?;
    let words: Vec<_> = words.iter().filter(|word| *word != "…").map(|word| stand_in(word)).collect();
    // A part of the program, such as `orchard ssh`, and not a whole command.
    (!words.iter().any(|word| word == "COMMAND")).then_some(words)
}

/// A word that people are to put something else for, as that.
fn stand_in(word: &str) -> String {
    let word = word.trim_end_matches('…');
    match word {
        "PORT" | "REMOTE" => "22".to_owned(),
        "N" | "NUMBER" => "1".to_owned(),
        "UID/ATTEMPT" => "00000000-0000-4000-8000-000000000000/0".to_owned(),
        _ => word.to_owned(),
    }
}

/// The commands of a script, each as its words: without comments, redirections and what leads from one to the next.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut redirected = false;
    let mut chars = script.chars().peekable();
    let mut inner = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            '\'' => word.get_or_insert_default().extend(chars.by_ref().take_while(|c| *c != '\'')),
            '"' => {
                let quoted: String = chars.by_ref().take_while(|c| *c != '"').collect();
                word.get_or_insert_default().push_str(&quoted);
            }
            '$' if chars.peek() == Some(&'(') => {
                let mut depth = 0_usize;
                let nested: String = chars
                    .by_ref()
                    .take_while(|c| {
                        depth = depth + usize::from(*c == '(') - usize::from(*c == ')');
                        depth > 0
                    })
                    .collect();
                inner.push_str(nested.trim_start_matches('('));
                inner.push('\n');
                word.get_or_insert_default().push_str(VALUE);
            }
            '#' if word.is_none() => {
                let _comment = chars.by_ref().find(|c| *c == '\n');
                end(&mut found, &mut words);
            }
            '\n' | '|' | ';' | '&' | '(' | ')' | '{' | '}' if !(matches!(c, '{' | '}') && word.is_some()) => {
                words.extend(word.take().filter(|_| !std::mem::take(&mut redirected)));
                end(&mut found, &mut words);
            }
            '>' | '<' => {
                words.extend(word.take());
                redirected = true;
            }
            c if c.is_whitespace() => {
                let Some(whole) = word.take() else { continue };
                if !std::mem::take(&mut redirected) {
                    words.push(whole);
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.filter(|_| !redirected));
    end(&mut found, &mut words);
    if !inner.is_empty() {
        found.extend(commands(&inner));
    }
    found
}

fn end(found: &mut Vec<Vec<String>>, words: &mut Vec<String>) {
    if !words.is_empty() {
        found.push(std::mem::take(words));
    }
}

#[test]
fn the_calls_in_a_script_are_found() {
    let calls = |script: &str| -> Vec<String> { orchards(script).iter().map(|words| words.join(" ")).collect() };
    assert_eq!(calls("orchard get x | ssh m orchard worker run --a  # orchard c"), ["get x", "worker run --a"]);
    assert_eq!(calls("(umask 077; orchard create 'a b' > f.token)\n"), ["create a b"]);
    assert_eq!(calls("T=$(orchard get token) orchard list \\\n  vms"), ["list vms", "get token"]);
    assert_eq!(calls("orchard backup /b/$(date +%F) < in"), ["backup /b/value"]);
    assert_eq!(
        calls("admin() { runuser -u orchard -- env A=b orchard \"$@\"; }\nadmin list workers"),
        ["list workers"]
    );
    assert_eq!(calls("systemctl stop orchard\ninstall -o orchard a b"), Vec::<String>::new());
}

#[test]
fn what_prose_speaks_of_becomes_words_that_can_be_typed() {
    let typed = |span: &str| written(span).map(|words| words.join(" "));
    assert_eq!(typed("orchard ssh vm NAME [COMMAND…]").unwrap(), "ssh vm NAME");
    assert_eq!(typed("orchard proxy vm|worker NAME PORT [--wait]").unwrap(), "proxy vm NAME 22");
    assert_eq!(typed("orchard exec vm NAME -- CMD…").unwrap(), "exec vm NAME -- CMD");
    assert_eq!(typed("orchard COMMAND --help"), None);
    assert_eq!(typed("--wait"), None);
}
