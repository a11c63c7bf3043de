//! Text that a POSIX shell reads back as one word, and the frame around a startup script. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::model::secret::Secret;
use crate::model::vm::StartupScript;

/// Why a script cannot be given to a shell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptTextError {
    /// The name is none that a shell takes.
    #[error("{0:?} is no name of an environment variable; use letters, digits and _, not starting with a digit")]
    Name(String),
    /// No shell can hold a NUL character.
    #[error("{0} contains a NUL character, which no shell can hold")]
    Nul(String),
}

/// `text` in single quotes, so that the shell takes it as it is.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether a shell takes `name` as a variable's name.
pub fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The command line that has a POSIX shell run `words` as they stand, in the folder `workdir` and with the variables `env`; the
/// words are one command and its arguments, in which the shell finds nothing to expand.
///
/// # Errors
/// [`ScriptTextError`] names what no shell can take.
pub fn command_line(
    words: &[String],
    env: &BTreeMap<String, Secret>,
    workdir: Option<&str>,
) -> Result<String, ScriptTextError> {
    let mut line = String::new();
    if let Some(folder) = workdir {
        // A bare dash would be the folder before this one.
        let folder = if folder == "-" { "./-" } else { folder };
        let _ = writeln!(line, "cd -- {} || exit", quote(without_nul(folder, "the working folder")?));
    }
    for (name, value) in env {
        if !is_variable_name(name) {
            return Err(ScriptTextError::Name(name.clone()));
        }
        let value = without_nul(value.expose(), &format!("the value of variable {name}"))?;
        let _ = writeln!(line, "export {name}={}", quote(value));
    }
    for (index, word) in words.iter().enumerate() {
        line.push_str(if index == 0 { "" } else { " " });
        line.push_str(&quote(without_nul(word, "the command")?));
    }
    Ok(line)
}

fn without_nul<'a>(text: &'a str, what: &str) -> Result<&'a str, ScriptTextError> {
    if text.contains('\0') { Err(ScriptTextError::Nul(what.to_owned())) } else { Ok(text) }
}

/// What is written to the standard input of a login shell to run `script`: it stops at the first failing command, its
/// variables are exported, and its own standard input is empty. The whole script is one quoted argument of `eval`, so
/// the shell has read all of it before any of it runs, and nothing in it can eat or end the text that follows. `eval`
/// rather than `sh -c`, because it runs in the user's own shell and an argument of it has no length limit.
///
/// # Errors
/// [`ScriptTextError`] names what no shell can take.
pub fn frame(script: &StartupScript) -> Result<String, ScriptTextError> {
    let mut text = String::from("set -e\n");
    for (name, value) in &script.env {
        if !is_variable_name(name) {
            return Err(ScriptTextError::Name(name.clone()));
        }
        let value = without_nul(value.expose(), &format!("the value of variable {name}"))?;
        let _ = writeln!(text, "export {name}={}", quote(value)); // a String takes everything
    }
    if script.script_content.contains('\0') {
        return Err(ScriptTextError::Nul("the startup script".to_owned()));
    }
    // the final newline ends a last line that is a comment or a here-document
    let body = format!("{}\n", script.script_content);
    let _ = writeln!(text, "eval {} </dev/null\nexit", quote(&body));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn script(content: &str, env: &[(&str, &str)]) -> StartupScript {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        StartupScript { script_content: content.to_owned(), env }
    }

    fn run(script: &StartupScript) -> Output {
        let mut shell = Command::new("sh");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let mut input = shell.stdin.take().unwrap();
        input.write_all(frame(script).unwrap().as_bytes()).unwrap();
        drop(input);
        shell.wait_with_output().unwrap()
    }

    #[test]
    fn names_that_no_shell_takes_are_refused() {
        for bad in ["", "1A", "A-B", "A B", "A=B", "ä", "A\n", "$A"] {
            assert_eq!(frame(&script("", &[(bad, "")])), Err(ScriptTextError::Name(bad.to_owned())));
        }
        assert!(frame(&script("", &[("_a1", "")])).is_ok());
        assert!(matches!(frame(&script("a\0", &[])), Err(ScriptTextError::Nul(_))));
        assert!(matches!(frame(&script("", &[("A", "\0")])), Err(ScriptTextError::Nul(_))));
    }

    #[test]
    fn the_script_cannot_eat_its_own_text() {
        let out = run(&script("cat\nread line || echo nothing to read\necho end # last", &[]));
        assert_eq!(String::from_utf8_lossy(&out.stdout), "nothing to read\nend\n");
        assert!(out.status.success());
    }

    #[test]
    fn it_stops_at_the_first_failure_and_tells_the_code() {
        let out = run(&script("echo one\n(exit 9)\necho two", &[]));
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(9), b"one\n".as_slice()));
        assert_eq!(run(&script("exit 123", &[])).status.code(), Some(123));
        assert!(!run(&script("if; then (", &[])).status.success());
    }

    #[test]
    fn here_documents_braces_and_quotes_survive() {
        let out = run(&script("f() {\ncat <<X\n'a' \"b\" $((1+1)) }\nX\n}\nf", &[]));
        assert_eq!(String::from_utf8_lossy(&out.stdout), "'a' \"b\" 2 }\n");
    }

    fn run_line(words: &[&str], env: &[(&str, &str)], workdir: Option<&str>) -> Output {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        Command::new("sh").arg("-c").arg(command_line(&words, &env, workdir).unwrap()).output().unwrap()
    }

    #[test]
    fn a_command_runs_in_its_folder_and_fails_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("it's a $(folder)");
        std::fs::create_dir(&odd).unwrap();
        let out = run_line(&["pwd"], &[], odd.to_str());
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim_end(), odd.to_str().unwrap());
        let out = run_line(&["echo", "never"], &[], Some("/nonexistent/folder"));
        assert!(!out.status.success() && out.stdout.is_empty());
        assert_eq!(run_line(&["exit", "9"], &[], None).status.code(), Some(9));
        assert!(!run_line(&["pwd"], &[], Some("-")).status.success());
    }

    #[test]
    fn what_no_shell_takes_is_refused_in_a_command_too() {
        let words = ["true".to_owned()];
        let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), Secret::new(value))]);
        assert_eq!(command_line(&words, &env("1A", ""), None), Err(ScriptTextError::Name("1A".into())));
        for (words, env, workdir) in [
            (&words[..], env("A", "\0"), None),
            (&words[..], BTreeMap::new(), Some("\0")),
            (&["a\0".to_owned()][..], BTreeMap::new(), None),
        ] {
            assert!(matches!(command_line(words, &env, workdir), Err(ScriptTextError::Nul(_))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))] // each starts a shell
        #[test]
        fn any_value_reaches_the_script_unchanged(value in "(?s)[^\0]{0,40}", spiced in r#"['"\\$`(){}\n!;&|<># a]{0,40}"#) {
            let out = run(&script("printf '%s\\0%s' \"$A\" \"$B\"", &[("A", &value), ("B", &spiced)]));
            prop_assert_eq!(out.stdout, format!("{value}\0{spiced}").into_bytes());
        }

        #[test]
        fn any_word_reaches_the_command_unchanged(word in "(?s)[^\0]{0,40}", value in r#"['"\\$`(){}\n!;&|<># a-]{0,40}"#) {
            let out = run_line(&["printf", "%s\\0%s", &word, "--"], &[("A", &value)], None);
            prop_assert_eq!(out.stdout, format!("{word}\0--").into_bytes());
            let out = run_line(&["sh", "-c", "printf '%s\\0%s' \"$A\" \"$0\"", &word], &[("A", &value)], None);
            prop_assert_eq!(out.stdout, format!("{value}\0{word}").into_bytes());
        }
    }
}
