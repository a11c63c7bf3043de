//! How good it is what a word tells of a state or an event, and the colour for that: the same word has the same colour everywhere.

/// What a word tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be: green.
    Good,
    /// Not yet, or no longer quite: yellow.
    Doubtful,
    /// Lost: red.
    Bad,
    /// Switched off: dim.
    Off,
}

impl Tone {
    /// What the state or the kind of event `word` tells, if that is worth a colour. Behind a comma stands what it is not wholly.
    pub fn of(word: &str) -> Option<Self> {
        let (word, more) = word.split_once(", ").map_or((word, false), |(word, _)| (word, true));
        match word {
            "running" | "ready" | "online" | "done" if !more => Some(Tone::Good),
            "online" | "pending" | "unseen" | "waiting" | "pulling" | "restarting" | "stray" => Some(Tone::Doubtful),
            "failed" | "gone" | "deleted" => Some(Tone::Bad),
            "stopped" | "suspended" => Some(Tone::Off),
            _ => None,
        }
    }

    /// `text` in its colour.
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31",
            Tone::Off => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}
