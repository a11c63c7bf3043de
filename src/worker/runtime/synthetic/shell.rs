//! The shell of a synthetic guest: runs what [`parse`](super::parse) understands, with a handful of commands built in.
//! One instance serves one SSH channel; [`guest`](super::guest) feeds and owns it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use super::guest::Console;
use super::parse::{Command, Joined, Parsed, Piece, Target, Word, parse_line};
use crate::ssh::quote::is_variable_name;
use crate::ssh::terminal::Size;

/// The longest `sleep`, in seconds.
const MAX_SLEEP: f64 = 3600.0;
/// Bytes of output gathered before they are sent.
const OUTPUT_CHUNK: usize = 32 * 1024;
/// How deep `eval` and `sh -c` may stand in one another.
const MAX_DEPTH: usize = 16;

/// What came from the client and was not used yet.
pub(super) struct Input {
    pub(super) chunks: mpsc::Receiver<Bytes>,
    pub(super) buffer: Vec<u8>,
}

impl Input {
    /// Waits for more; false at the end.
    async fn more(&mut self) -> bool {
        match self.chunks.recv().await {
            Some(chunk) => {
                self.buffer.extend_from_slice(&chunk);
                true
            }
            None => false,
        }
    }
}

/// Why the shell stops.
pub(super) enum End {
    /// With this exit code.
    Exit(u32),
    /// The client went away.
    Gone,
}

pub(super) struct Shell {
    pub(super) vm: String,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) input: Input,
    pub(super) console: Arc<Console>,
    /// Told by the keyboard to stop what runs.
    pub(super) interrupt: Arc<Notify>,
    pub(super) size: watch::Receiver<Size>,
    pub(super) terminal: bool,
    pub(super) power_off: Box<dyn Fn() + Send + Sync>,
    pub(super) last: u32,
    pub(super) stop_on_error: bool,
    /// Within an `eval` or `sh -c` whose standard input is `/dev/null`.
    pub(super) no_input: bool,
    pub(super) depth: usize,
}

impl Shell {
    /// Runs a command line to its end.
    pub(super) async fn run_text(&mut self, text: &str) -> Result<u32, End> {
        self.eval(text).await?;
        Ok(self.last)
    }

    /// Runs what comes from the input, line by line, until its end.
    pub(super) fn run_input(&mut self) -> BoxFuture<'_, Result<u32, End>> {
        async move {
            let mut last = false;
            self.prompt().await?;
            loop {
                let text = String::from_utf8_lossy(&self.input.buffer).into_owned();
                match parse_line(&text, last) {
                    Parsed::Line(commands, consumed) => {
                        self.input.buffer = text.as_bytes().get(consumed..).unwrap_or_default().to_vec();
                        self.list(&commands).await?;
                        if last && self.input.buffer.is_empty() {
                            return Ok(self.last);
                        }
                        self.prompt().await?;
                    }
                    Parsed::Incomplete => last = !self.input.more().await,
                    Parsed::Wrong(what) if self.terminal => {
                        self.input.buffer.clear();
                        self.complain(&what).await?;
                        self.prompt().await?;
                    }
                    Parsed::Wrong(what) => return self.syntax_error(&what).await,
                }
            }
        }
        .boxed()
    }

    fn eval<'a>(&'a mut self, text: &'a str) -> BoxFuture<'a, Result<(), End>> {
        async move {
            let mut rest = text;
            loop {
                match parse_line(rest, true) {
                    Parsed::Line(commands, consumed) => {
                        self.list(&commands).await?;
                        rest = rest.get(consumed..).unwrap_or_default();
                        if rest.is_empty() {
                            return Ok(());
                        }
                    }
                    Parsed::Incomplete => return self.syntax_error("unexpected end").await.map(drop),
                    Parsed::Wrong(what) => return self.syntax_error(&what).await.map(drop),
                }
            }
        }
        .boxed()
    }

    async fn syntax_error(&mut self, what: &str) -> Result<u32, End> {
        self.complain(&format!("syntax error: {what}")).await?;
        Err(End::Exit(2))
    }

    async fn prompt(&self) -> Result<(), End> {
        if self.terminal { self.console.write(Target::Stdout, format!("{}$ ", self.vm).into()).await } else { Ok(()) }
    }

    async fn complain(&self, what: &str) -> Result<(), End> {
        self.console.write(Target::Stderr, format!("sh: {what}\n").into()).await
    }

    async fn list(&mut self, commands: &[Command]) -> Result<(), End> {
        for (at, command) in commands.iter().enumerate() {
            let due = match command.joined {
                Joined::Always => true,
                Joined::IfSucceeded => self.last == 0,
                Joined::IfFailed => self.last != 0,
            };
            if !due {
                continue;
            }
            self.last = self.command(command).await?;
            let tested = commands.get(at + 1).is_some_and(|next| next.joined != Joined::Always);
            if self.last != 0 && self.stop_on_error && !tested {
                return Err(End::Exit(self.last));
            }
        }
        Ok(())
    }

    async fn command(&mut self, command: &Command) -> Result<u32, End> {
        let mut words: Vec<String> = command.words.iter().map(|word| self.expand(word)).collect();
        while let Some((name, value)) = words.first().and_then(|word| assignment(word)) {
            self.variables.insert(name.to_owned(), value.to_owned());
            words.remove(0);
        }
        let Some((name, arguments)) = words.split_first() else { return Ok(0) };
        let result = self.builtin(name, arguments, command).await?;
        match result {
            Done::Code(code) => Ok(code),
            Done::Say(text) => self.console.write(command.stdout, text.into()).await.map(|()| 0),
            Done::Fail(code, what) => {
                let text = format!("{name}: {what}\n");
                self.console.write(command.stderr, text.into()).await.map(|()| code)
            }
        }
    }

    fn expand(&self, word: &Word) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Variable(name) if name == "?" => self.last.to_string(),
            Piece::Variable(name) => self.variables.get(name).cloned().unwrap_or_default(),
        };
        word.iter().map(piece).collect()
    }

    async fn builtin(&mut self, name: &str, arguments: &[String], command: &Command) -> Result<Done, End> {
        let first = arguments.first().map(String::as_str);
        let no_input = self.no_input || command.no_input;
        Ok(match (name, first) {
            ("true" | ":" | "cd", _) => Done::Code(0),
            ("false", _) => Done::Code(1),
            ("echo", Some("-n")) => Done::Say(arguments.get(1..).unwrap_or_default().join(" ")),
            ("echo", _) => Done::Say(arguments.join(" ") + "\n"),
            ("hostname", _) => Done::Say(format!("{}\n", self.vm)),
            ("uname", None | Some("-s")) => Done::Say("Linux\n".to_owned()),
            ("uname", Some("-n")) => Done::Say(format!("{}\n", self.vm)),
            ("uname", _) => Done::Say(format!("Linux {} synthetic {}\n", self.vm, std::env::consts::ARCH)),
            ("whoami", _) => Done::Say(self.variables.get("USER").cloned().unwrap_or_default() + "\n"),
            ("env", None) => {
                Done::Say(self.variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect())
            }
            ("export", _) => self.export(arguments),
            ("set", _) => self.set(arguments),
            ("exit", None) => return Err(End::Exit(self.last)),
            ("exit", Some(code)) => match code.parse::<u8>() {
                Ok(code) => return Err(End::Exit(code.into())),
                Err(_) => Done::Fail(2, format!("{code:?} is no number from 0 to 255")),
            },
            ("sleep", Some(seconds)) => match seconds.parse::<f64>() {
                Ok(seconds) if seconds >= 0.0 => {
                    let length = Duration::from_secs_f64(seconds.min(MAX_SLEEP));
                    tokio::select! {
                        () = sleep(length) => Done::Code(0),
                        () = self.interrupt.notified() => Done::Code(130),
                    }
                }
                _ => Done::Fail(1, format!("{seconds:?} is no time in seconds")),
            },
            ("seq", Some(count)) => match count.parse::<u64>() {
                Ok(count) => self.seq(count, command.stdout).await?,
                Err(_) => Done::Fail(1, format!("{count:?} is no number")),
            },
            ("stty", Some("size")) if self.terminal => {
                let size = *self.size.borrow();
                Done::Say(format!("{} {}\n", size.rows, size.columns))
            }
            ("stty", _) => Done::Fail(1, "standard input is not a terminal".to_owned()),
            ("cat", None) if no_input => Done::Code(0),
            ("cat", None) => self.cat(command.stdout).await?,
            ("cat", Some(file)) => Done::Fail(1, format!("{file}: No such file or directory")),
            ("poweroff" | "shutdown" | "halt", _) => {
                (self.power_off)();
                return Err(End::Gone);
            }
            ("eval", _) => self.nested(&arguments.join(" "), no_input).await?,
            ("sh" | "bash", Some("-c")) => {
                let before = (self.variables.clone(), self.stop_on_error);
                let text = arguments.get(1).cloned().unwrap_or_default();
                let ended = self.nested(&text, no_input).await;
                (self.variables, self.stop_on_error) = before;
                match ended {
                    Err(End::Exit(code)) => Done::Code(code),
                    other => other?,
                }
            }
            ("sh" | "bash", None | Some("-s" | "-l" | "-")) if no_input => Done::Code(0),
            ("sh" | "bash", None | Some("-s" | "-l" | "-")) => match self.run_input().await {
                Ok(code) | Err(End::Exit(code)) => Done::Code(code),
                Err(End::Gone) => return Err(End::Gone),
            },
            _ => Done::Fail(127, "not found in a synthetic guest".to_owned()),
        })
    }

    async fn nested(&mut self, text: &str, no_input: bool) -> Result<Done, End> {
        if self.depth >= MAX_DEPTH {
            return Ok(Done::Fail(2, format!("nested more than {MAX_DEPTH} deep")));
        }
        let outer = std::mem::replace(&mut self.no_input, no_input);
        self.depth += 1;
        self.last = 0;
        let ended = self.eval(text).await;
        self.depth -= 1;
        self.no_input = outer;
        ended.map(|()| Done::Code(self.last))
    }

    fn export(&mut self, arguments: &[String]) -> Done {
        for argument in arguments {
            match assignment(argument) {
                Some((name, value)) => {
                    self.variables.insert(name.to_owned(), value.to_owned());
                }
                None if is_variable_name(argument) => {}
                None => return Done::Fail(2, format!("{argument}: bad variable name")),
            }
        }
        Done::Code(0)
    }

    fn set(&mut self, arguments: &[String]) -> Done {
        for argument in arguments {
            match argument.as_str() {
                "-e" => self.stop_on_error = true,
                "+e" => self.stop_on_error = false,
                _ => {} // the others change nothing here
            }
        }
        Done::Code(0)
    }

    async fn seq(&self, count: u64, to: Target) -> Result<Done, End> {
        let mut text = Vec::with_capacity(OUTPUT_CHUNK);
        for number in 1..=count {
            let _ = writeln!(text, "{number}"); // a Vec takes everything
            if text.len() > OUTPUT_CHUNK - 32 {
                self.console.write(to, std::mem::take(&mut text).into()).await?;
            }
        }
        self.console.write(to, text.into()).await?;
        Ok(Done::Code(0))
    }

    async fn cat(&mut self, to: Target) -> Result<Done, End> {
        loop {
            let bytes = std::mem::take(&mut self.input.buffer);
            self.console.write(to, bytes.into()).await?;
            let more = tokio::select! {
                more = self.input.more() => more,
                () = self.interrupt.notified() => return Ok(Done::Code(130)),
            };
            if !more {
                return Ok(Done::Code(0));
            }
        }
    }
}

enum Done {
    Code(u32),
    Say(String),
    Fail(u32, String),
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    word.split_once('=').filter(|(name, _)| is_variable_name(name))
}
