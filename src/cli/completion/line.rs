//! The line that somebody is completing, as the words that the command would get. Pure.
//!
//! Bash splits words at `=` and `:` before it asks (`COMP_WORDBREAKS`), and wants to be told only what follows the last of these:
//! behind `--context=lo` it asks for `lo`. Here such words are whole again, and it is known what bash keeps of the one at the cursor.

use std::ffi::OsString;

/// What bash splits words at that are one to everybody else.
const BREAKS: [char; 2] = ['=', ':'];

/// A line with a word that is to be completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The words, the program's name first.
    pub(super) words: Vec<OsString>,
    /// Which of them is at the cursor.
    pub(super) at: usize,
    /// What that word begins with and the shell does not want to be told again.
    pub(super) kept: String,
}

impl Line {
    /// Of words that are whole.
    pub(super) fn of(words: Vec<OsString>, at: usize) -> Self {
        Self { words, at, kept: String::new() }
    }

    /// Of words that bash has split: `at` is which of them is at the cursor, `begun` what of it stands before the cursor, and `text`
    /// the line itself, in which what belongs together is not separated by blanks.
    pub(super) fn of_bash(split: &[String], at: usize, begun: &str, text: &str) -> Self {
        let mut line = Self::default();
        let mut words: Vec<String> = Vec::new();
        let (mut rest, mut before_is_break) = (text, false);
        for (index, piece) in split.iter().enumerate() {
            let bare = rest.trim_start();
            let apart = bare.len() < rest.len();
            rest = bare.strip_prefix(piece.as_str()).unwrap_or(bare);
            let is_break = !piece.is_empty() && piece.chars().all(|c| BREAKS.contains(&c));
            // Nothing is joined to the word at the cursor, whose end is not known yet.
            let joins = !apart && index != at + 1 && (is_break || before_is_break);
            before_is_break = is_break;
            let shown = if index == at && !is_break { begun } else { piece };
            match words.last_mut().filter(|_| joins) {
                Some(last) => {
                    if index == at {
                        line.kept.clone_from(last);
                    }
                    last.push_str(shown);
                }
                None => words.push(shown.to_owned()),
            }
            if index == at {
                line.at = words.len().saturating_sub(1);
                if let Some(word) = words.last_mut() {
                    if is_break {
                        line.kept.clone_from(word);
                    } else if line.kept.is_empty() {
                        line.kept = kept_of_whole(piece, begun).to_owned();
                        word.insert_str(0, &line.kept);
                    }
                }
            }
        }
        line.words = words.into_iter().map(OsString::from).collect();
        line
    }

    /// The words that are text.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.words.iter().filter_map(|word| word.to_str())
    }

    /// The words behind the first one that is `word`, but for the one at the cursor.
    pub(super) fn behind(&self, word: &str) -> impl Iterator<Item = &str> {
        let words = self.words.iter().enumerate().filter(|(place, _)| *place != self.at);
        words.filter_map(|(_, word)| word.to_str()).skip_while(move |each| *each != word).skip(1)
    }

    /// The value of this option, if it stands on the line.
    pub(super) fn value_of(&self, option: &str) -> Option<String> {
        let behind = self.texts().zip(self.texts().skip(1)).find(|(word, _)| *word == option);
        let joined = || self.texts().find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
        behind.map(|(_, value)| value).or_else(joined).filter(|value| !value.is_empty()).map(str::to_owned)
    }
}

/// Old bashes split no words, and yet want to be told only what follows the last break.
fn kept_of_whole<'a>(word: &'a str, begun: &str) -> &'a str {
    word.strip_suffix(begun).filter(|kept| kept.ends_with(BREAKS)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line as bash tells of it; `|` stands between its words, and the cursor at the end of the one at `at`.
    fn bash(text: &str, split: &str, at: usize, begun: &str) -> (Vec<String>, usize, String) {
        let split: Vec<String> = split.split('|').map(str::to_owned).collect();
        let line = Line::of_bash(&split, at, begun, text);
        (line.texts().map(str::to_owned).collect(), line.at, line.kept)
    }

    fn told(words: &[&str], at: usize, kept: &str) -> (Vec<String>, usize, String) {
        (words.iter().map(|word| (*word).to_owned()).collect(), at, kept.to_owned())
    }

    #[test]
    fn what_bash_has_split_is_one_word_again() {
        // As bash 5 tells it.
        assert_eq!(bash("o --context=lo", "o|--context|=|lo", 3, "lo"), told(&["o", "--context=lo"], 1, "--context="));
        assert_eq!(bash("o --context=", "o|--context|=", 2, ""), told(&["o", "--context="], 1, "--context="));
        assert_eq!(
            bash("o --context=\"lo", "o|--context|=|\"lo", 3, "lo"),
            told(&["o", "--context=lo"], 1, "--context=")
        );
        assert_eq!(bash("o --context= ", "o|--context|=|", 3, ""), told(&["o", "--context=", ""], 2, ""));
        assert_eq!(
            bash("o --r compute:r", "o|--r|compute|:|r", 4, "r"),
            told(&["o", "--r", "compute:r"], 2, "compute:")
        );
        assert_eq!(bash("o --r=a:b,c:d x", "o|--r|=|a|:|b,c|:|d|x", 8, "x"), told(&["o", "--r=a:b,c:d", "x"], 2, ""));
        assert_eq!(bash("o cp hello: ./x", "o|cp|hello|:|./x", 4, "./x"), told(&["o", "cp", "hello:", "./x"], 3, ""));
        assert_eq!(bash("o a::b c", "o|a|::|b|c", 4, "c"), told(&["o", "a::b", "c"], 2, ""));
        assert_eq!(bash("o --context=prod get x", "o|--context|=|prod|get|x", 5, "x").0[1], "--context=prod");
    }

    #[test]
    fn the_cursor_may_stand_before_other_words() {
        assert_eq!(
            bash("o --context=lo ssh", "o|--context|=|lo|ssh", 3, "l"),
            told(&["o", "--context=l", "ssh"], 1, "--context=")
        );
        let (words, at, kept) = bash("o --con=lo", "o|--con|=|lo", 1, "--con");
        assert_eq!((words[at].as_str(), kept.as_str()), ("--con", ""));
    }

    #[test]
    fn an_old_bash_keeps_what_it_has_not_split() {
        assert_eq!(bash("o --context=lo", "o|--context=lo", 1, "lo"), told(&["o", "--context=lo"], 1, "--context="));
        assert_eq!(bash("o oo", "o|oo", 1, "o"), told(&["o", "o"], 1, ""));
    }

    fn context(line: &str) -> Option<String> {
        Line::of(line.split(' ').map(OsString::from).collect(), 0).value_of("--context")
    }

    #[test]
    fn the_value_of_an_option_is_found_however_it_is_given() {
        assert_eq!(context("orchard --context prod ssh vm h").as_deref(), Some("prod"));
        assert_eq!(context("orchard ssh vm --context=prod h").as_deref(), Some("prod"));
        assert_eq!(context("orchard ssh vm h"), None);
        assert_eq!(context("orchard ssh vm h --context"), None);
        assert_eq!(context("orchard ssh vm h --contexts=x"), None);
    }
}
