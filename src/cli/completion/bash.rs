//! What bash is told, in place of clap's own script, which leaves words as bash has split them: `--context=lo` would reach the
//! command as `--context`, `=` and `lo`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use clap_complete::engine;
use clap_complete::env::EnvCompleter;

use super::line::Line;

/// Which word is at the cursor; as clap's scripts have it.
const INDEX: &str = "_CLAP_COMPLETE_INDEX";
/// What stands between candidates; the same.
const SEPARATOR: &str = "_CLAP_IFS";
/// The line as it was typed.
const TEXT: &str = "ORCHARD_COMPLETE_LINE";
/// What of the word stands before the cursor, without quotes.
const BEGUN: &str = "ORCHARD_COMPLETE_BEGUN";

/// Reads the line that the script asks about. A script of an earlier release says less; then words are taken as they are.
pub(super) fn asked(words: Vec<OsString>) -> Line {
    let text = |name| std::env::var(name).ok();
    let at = text(INDEX).and_then(|index| index.parse().ok()).unwrap_or_default();
    let split: Option<Vec<String>> = words.iter().map(|word| word.to_str().map(str::to_owned)).collect();
    match (split, text(TEXT), text(BEGUN)) {
        (Some(split), Some(line), Some(begun)) => Line::of_bash(&split, at, &begun, &line),
        _ => Line::of(words, at),
    }
}

/// Answers bash about this line.
pub(super) struct Bash(pub(super) Arc<Line>);

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == "bash"
    }

    fn write_registration(
        &self,
        variable: &str,
        _name: &str,
        program: &str,
        completer: &str,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let script = SCRIPT.replace("VARIABLE", variable).replace("PROGRAM", program).replace("COMPLETER", completer);
        out.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let separator = std::env::var(SEPARATOR).unwrap_or_else(|_| "\n".to_owned());
        let found = engine::complete(command, words, self.0.at, folder)?;
        let found = found.iter().map(|candidate| candidate.get_value().to_string_lossy());
        let told: Vec<String> = found.filter_map(|value| Some(value.strip_prefix(&self.0.kept)?.to_owned())).collect();
        out.write_all(told.join(&separator).as_bytes())
    }
}

/// Behind what is not a whole word yet, such as `--output=` or a folder, no blank is put. Versions before 4.4 cannot keep the order
/// of the candidates, and those before 4 not choose about the blank.
const SCRIPT: &str = r#"
_complete_PROGRAM() {
    local IFS=$'\013' chooses=false
    if compopt +o nospace 2> /dev/null; then
        chooses=true
    fi
    COMPREPLY=( $( \
        _CLAP_IFS="$IFS" \
        _CLAP_COMPLETE_INDEX="$COMP_CWORD" \
        ORCHARD_COMPLETE_LINE="$COMP_LINE" \
        ORCHARD_COMPLETE_BEGUN="$2" \
        VARIABLE=bash \
        COMPLETER -- "${COMP_WORDS[@]}" \
    ) )
    if [[ $? != 0 ]]; then
        unset COMPREPLY
    elif [[ $chooses == true && "${COMPREPLY-}" =~ [=/:]$ ]]; then
        compopt -o nospace
    fi
}
if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -o nospace -o bashdefault -o nosort -F _complete_PROGRAM PROGRAM
else
    complete -o nospace -o bashdefault -F _complete_PROGRAM PROGRAM
fi
"#;
