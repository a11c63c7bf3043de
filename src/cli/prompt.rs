//! What is asked of the person at the terminal: a name, a secret that is not shown, yes or no. Without a terminal nothing
//! is asked: a program would be held up, or worse, answer by accident.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use anyhow::Context as _;

use super::serve::folder;
use crate::model::secret::Secret;
use crate::ssh::terminal::RawMode;

/// The longest answer: a token has 43 characters, and a line without an end is no answer.
const MAX_ANSWER: usize = 4096;

/// Whether there is somebody to ask.
pub(super) fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// A token from standard input, to its end.
pub(super) async fn secret_from_stdin() -> anyhow::Result<Secret> {
    from_stdin(folder::token_from).await
}

/// Reads standard input on a thread of its own, so that Ctrl-C is heard meanwhile.
pub(super) async fn from_stdin(
    read: impl FnOnce(io::StdinLock<'static>) -> anyhow::Result<Secret> + Send + 'static,
) -> anyhow::Result<Secret> {
    tokio::task::spawn_blocking(|| read(io::stdin().lock())).await.context("the reading was cut short")?
}

/// A password for a guest from anywhere: all of its first line, which is all there may be.
pub(super) fn password_from(source: impl io::Read) -> anyhow::Result<Secret> {
    let mut text = zeroize::Zeroizing::new(String::with_capacity(MAX_ANSWER));
    source.take(MAX_ANSWER as u64 + 1).read_to_string(&mut text)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    match line.strip_suffix('\r').unwrap_or(line) {
        "" => anyhow::bail!("it is empty"),
        _ if text.len() > MAX_ANSWER => anyhow::bail!("it is longer than {MAX_ANSWER} bytes"),
        several if several.contains(['\n', '\r']) => anyhow::bail!("it holds more than one line"),
        password => Ok(Secret::new(password)),
    }
}

/// Asks for a line. Blocks.
pub(super) fn line(question: &str) -> io::Result<String> {
    ask(question)?;
    let mut answer = String::new();
    if io::stdin().read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim().to_owned())
}

/// Asks until the answer is `yes` or `no`, in full: a habit of pressing a key must not decide whom to trust. Blocks.
pub(super) fn yes_or_no(question: &str) -> io::Result<bool> {
    let mut answer = line(&format!("{question} (yes/no) "))?;
    loop {
        match answer.as_str() {
            "yes" => return Ok(true),
            "no" => return Ok(false),
            _ => answer = line("Please type yes or no: ")?,
        }
    }
}

/// Asks for a secret without showing what is typed. Blocks.
pub(super) fn secret(question: &str) -> io::Result<Secret> {
    let answer = {
        // First hidden, then asked: whoever types ahead is not shown either.
        let _raw = RawMode::enter()?;
        ask(question)?;
        read_hidden(io::stdin().lock().bytes())
    };
    eprintln!();
    answer
}

fn ask(question: &str) -> io::Result<()> {
    let mut screen = io::stderr().lock();
    screen.write_all(question.as_bytes())?;
    screen.flush()
}

/// Reads the keys of a terminal in raw mode up to the end of the line, as the terminal itself would have.
fn read_hidden(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<Secret> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const CTRL_U: u8 = 21;
    // Room from the start: a buffer that grows leaves copies of the secret behind.
    let mut text = zeroize::Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    for key in keys {
        match key? {
            b'\r' | b'\n' => {
                let text = std::str::from_utf8(&text).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                return Ok(Secret::new(text.trim()));
            }
            CTRL_C => return Err(io::ErrorKind::Interrupted.into()),
            CTRL_D if text.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            CTRL_U => text.clear(),
            8 | 127 => {
                // A character may have several bytes.
                while text.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            key if text.len() < MAX_ANSWER => text.push(key),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> io::Result<String> {
        read_hidden(keys.iter().copied().map(Ok)).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn a_hidden_line_is_edited_as_usual() {
        assert_eq!(typed(b"secret\rmore").unwrap(), "secret");
        assert_eq!(typed("wrong\u{15}t\u{fc}x\u{7f}\u{7f}ok\n".as_bytes()).unwrap(), "tok");
        assert_eq!(typed(b"\x7f\r").unwrap(), "");
        for (keys, kind) in [
            (&b"abc\x03"[..], io::ErrorKind::Interrupted),
            (b"\x04", io::ErrorKind::UnexpectedEof),
            (b"abc", io::ErrorKind::UnexpectedEof),
            (b"\xff\r", io::ErrorKind::InvalidData),
            (&[b'x'; MAX_ANSWER + 1], io::ErrorKind::InvalidData),
        ] {
            assert_eq!(typed(keys).unwrap_err().kind(), kind);
        }
    }
}
