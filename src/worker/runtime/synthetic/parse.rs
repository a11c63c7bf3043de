//! The grammar of the synthetic guest's shell: simple commands with quotes, variables, a few redirections, joined by
//! newline, `;`, `&&` and `||`. Pure.

use std::iter::Peekable;
use std::str::CharIndices;

/// One command, with how it follows the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) joined: Joined,
    pub(super) words: Vec<Word>,
    pub(super) stdout: Target,
    pub(super) stderr: Target,
    /// Standard input is `/dev/null`.
    pub(super) no_input: bool,
}

/// When a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    Always,
    IfSucceeded,
    IfFailed,
}

/// Where a stream of a command leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    Stderr,
    Nowhere,
}

/// A word before expansion.
pub(super) type Word = Vec<Piece>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Variable(String),
}

/// What stands at the beginning of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A whole line of commands (perhaps none) and how many bytes it takes.
    Line(Vec<Command>, usize),
    /// A quote or the line is still open.
    Incomplete,
    /// What is wrong with it.
    Wrong(String),
}

/// Parses one logical line. At the end of the input (`last`), a line needs no newline.
pub(super) fn parse_line(text: &str, last: bool) -> Parsed {
    let mut parser = Parser { text, chars: text.char_indices().peekable(), commands: Vec::new(), last };
    match parser.line() {
        Ok(consumed) => Parsed::Line(parser.commands, consumed),
        Err(Stop::Open) if !last => Parsed::Incomplete,
        Err(Stop::Open) => Parsed::Wrong("unexpected end of input".to_owned()),
        Err(Stop::Wrong(what)) => Parsed::Wrong(what),
    }
}

enum Stop {
    Open,
    Wrong(String),
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    commands: Vec<Command>,
    last: bool,
}

impl Parser<'_> {
    fn line(&mut self) -> Result<usize, Stop> {
        let mut joined = Joined::Always;
        let mut command = empty(joined);
        loop {
            let Some((at, c)) = self.chars.next() else {
                self.finish(command, joined != Joined::Always)?;
                return if self.last { Ok(self.text.len()) } else { Err(Stop::Open) };
            };
            match c {
                ' ' | '\t' | '\r' => continue,
                '#' => {
                    while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
                    continue;
                }
                // after && and || the line goes on
                '\n' if command.words.is_empty() && joined != Joined::Always => continue,
                '\n' => {
                    self.finish(command, false)?;
                    return Ok(at + 1);
                }
                ';' => {
                    self.finish(command, joined != Joined::Always)?;
                    joined = Joined::Always;
                }
                '&' | '|' => {
                    if self.chars.next_if(|(_, next)| *next == c).is_none() {
                        return Err(self.open_or(format!("{c} is not known to a synthetic guest")));
                    }
                    self.finish(command, true)?;
                    joined = if c == '&' { Joined::IfSucceeded } else { Joined::IfFailed };
                }
                '<' | '>' => {
                    self.redirect(&mut command, c, '1')?;
                    continue;
                }
                '1' | '2' if self.chars.next_if(|(_, next)| *next == '>').is_some() => {
                    self.redirect(&mut command, '>', c)?;
                    continue;
                }
                '(' | ')' | '`' => return Err(Stop::Wrong(format!("{c} is not known to a synthetic guest"))),
                _ => {
                    let word = self.word(c)?;
                    command.words.push(word);
                    continue;
                }
            }
            command = empty(joined);
        }
    }

    /// Ends a command; one without words is only an error where something must stand.
    fn finish(&mut self, command: Command, needed: bool) -> Result<(), Stop> {
        match command.words.is_empty() {
            true if needed => Err(self.open_or("a command is missing".to_owned())),
            true => Ok(()),
            false => {
                self.commands.push(command);
                Ok(())
            }
        }
    }

    /// At the end of what has arrived so far, more may make it right.
    fn open_or(&mut self, what: String) -> Stop {
        if self.chars.peek().is_none() && !self.last { Stop::Open } else { Stop::Wrong(what) }
    }

    fn redirect(&mut self, command: &mut Command, direction: char, stream: char) -> Result<(), Stop> {
        while self.chars.next_if(|(_, c)| *c == ' ').is_some() {}
        let Some((_, first)) = self.chars.next() else { return Err(Stop::Open) };
        let target = self.word(first)?;
        let target = match target.as_slice() {
            [Piece::Text(text)] => text.as_str(),
            _ => "",
        };
        let target = match (direction, target) {
            ('<', "/dev/null") => {
                command.no_input = true;
                return Ok(());
            }
            ('>', "/dev/null") => Target::Nowhere,
            ('>', "&1" | "/dev/stdout") => command.stdout,
            ('>', "&2" | "/dev/stderr") => command.stderr,
            _ => return Err(Stop::Wrong(format!("cannot redirect to or from {target:?} in a synthetic guest"))),
        };
        if stream == '2' {
            command.stderr = target;
        } else {
            command.stdout = target;
        }
        Ok(())
    }

    fn word(&mut self, first: char) -> Result<Word, Stop> {
        let mut word = vec![Piece::Text(String::new())];
        let mut next = Some(first);
        while let Some(c) = next {
            match c {
                '\'' => loop {
                    match self.chars.next().ok_or(Stop::Open)?.1 {
                        '\'' => break,
                        c => push(&mut word, c),
                    }
                },
                '"' => self.double_quoted(&mut word)?,
                '\\' => match self.chars.next().ok_or(Stop::Open)?.1 {
                    '\n' => {}
                    c => push(&mut word, c),
                },
                '$' => self.variable(&mut word)?,
                '`' => return Err(Stop::Wrong("` is not known to a synthetic guest".to_owned())),
                c => push(&mut word, c),
            }
            next = self.chars.next_if(|(_, c)| !" \t\r\n;|&<>()".contains(*c)).map(|(_, c)| c);
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), Stop> {
        loop {
            match self.chars.next().ok_or(Stop::Open)?.1 {
                '"' => return Ok(()),
                '$' => self.variable(word)?,
                '`' => return Err(Stop::Wrong("` is not known to a synthetic guest".to_owned())),
                '\\' => match self.chars.next().ok_or(Stop::Open)?.1 {
                    '\n' => {}
                    c @ ('$' | '"' | '\\' | '`') => push(word, c),
                    c => {
                        push(word, '\\');
                        push(word, c);
                    }
                },
                c => push(word, c),
            }
        }
    }

    fn variable(&mut self, word: &mut Word) -> Result<(), Stop> {
        let mut name = String::new();
        if self.chars.next_if(|(_, c)| *c == '{').is_some() {
            loop {
                match self.chars.next().ok_or(Stop::Open)?.1 {
                    '}' => break,
                    c => name.push(c),
                }
            }
            if name != "?" && !crate::ssh::quote::is_variable_name(&name) {
                return Err(Stop::Wrong(format!("${{{name}}} is not known to a synthetic guest")));
            }
        } else if self.chars.next_if(|(_, c)| *c == '?').is_some() {
            name.push('?');
        } else if self.chars.peek().is_some_and(|(_, c)| *c == '(') {
            return Err(Stop::Wrong("$( is not known to a synthetic guest".to_owned()));
        } else {
            while let Some((_, c)) = self.chars.next_if(|(_, c)| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(c);
            }
        }
        if name.is_empty() {
            push(word, '$');
        } else {
            word.push(Piece::Variable(name));
        }
        Ok(())
    }
}

fn empty(joined: Joined) -> Command {
    Command { joined, words: Vec::new(), stdout: Target::Stdout, stderr: Target::Stderr, no_input: false }
}

fn push(word: &mut Word, c: char) {
    match word.last_mut() {
        Some(Piece::Text(text)) => text.push(c),
        _ => word.push(Piece::Text(c.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ssh::quote::quote;

    fn words(line: &str) -> Vec<Vec<String>> {
        let Parsed::Line(commands, consumed) = parse_line(line, true) else { panic!("{line:?}") };
        assert_eq!(consumed, line.len());
        let text = |word: &Word| {
            let piece = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Variable(name) => format!("<{name}>"),
            };
            word.iter().map(piece).collect::<String>()
        };
        commands.iter().map(|command| command.words.iter().map(text).collect()).collect()
    }

    #[test]
    fn words_are_read_as_a_shell_reads_them() {
        assert_eq!(words(r#"echo a"b c"'d $x' \e"#), [["echo", "ab cd $x", "e"]]);
        assert_eq!(words("a;b && c || d # e"), [["a"], ["b"], ["c"], ["d"]]);
        assert_eq!(words(r#"echo "$A${B}" $? $"#), [["echo", "<A><B>", "<?>", "$"]]);
        assert_eq!(words(r"echo '' 'it'\''s'"), [["echo", "", "it's"]]);
        assert_eq!(words("a \\\nb"), [["a", "b"]]);
    }

    #[test]
    fn lines_wait_for_their_end() {
        assert_eq!(parse_line("echo 'a\n", false), Parsed::Incomplete);
        assert_eq!(parse_line("echo", false), Parsed::Incomplete);
        assert!(matches!(parse_line("echo 'a", true), Parsed::Wrong(_)));
        assert!(matches!(parse_line("a\nb\n", false), Parsed::Line(commands, 2) if commands.len() == 1));
        assert!(matches!(parse_line("a &&\nb\n", false), Parsed::Line(commands, 7) if commands.len() == 2));
    }

    #[test]
    fn redirections_lead_where_they_say() {
        let Parsed::Line(commands, _) = parse_line("a >&2 2>/dev/null </dev/null", true) else { panic!() };
        let [command] = commands.as_slice() else { panic!() };
        assert_eq!((command.stdout, command.stderr, command.no_input), (Target::Stderr, Target::Nowhere, true));
        for wrong in ["a > file", "a | b", "$(x)", "a &", "&& a", "(a)"] {
            assert!(matches!(parse_line(wrong, true), Parsed::Wrong(_)), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn quoted_text_is_one_word(text in "(?s)[^\0]{0,60}") {
            prop_assert_eq!(words(&format!("echo {}", quote(&text))), [["echo".to_owned(), text]]);
        }

        #[test]
        fn any_text_parses_or_is_refused(text in "(?s).{0,80}", last: bool) {
            if let Parsed::Line(_, consumed) = parse_line(&text, last) {
                prop_assert!(consumed <= text.len());
            }
        }
    }
}
