//! Files that hold what is expected, and the blotting out of what differs from run to run.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// Compares `actual` with the file `name`, or writes that anew if asked to.
pub fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/output").join(name);
    if std::env::var_os("ORCHARD_UPDATE_OUTPUT").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected == actual {
        return;
    }
    let (expected, actual): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    let same = expected.iter().zip(&actual).take_while(|(expected, actual)| expected == actual).count();
    let from = same.saturating_sub(3);
    let part = |lines: &[&str]| lines.iter().skip(from).take(12).copied().collect::<Vec<_>>().join("\n");
    panic!(
        "{} differs from line {} on:\n--- expected\n{}\n--- now\n{}\n`ORCHARD_UPDATE_OUTPUT=1 cargo test --test all -- \
         output::` writes it anew",
        path.display(),
        same + 1,
        part(&expected),
        part(&actual),
    );
}

/// Shapes of what differs: `h` is a hexadecimal digit, `d` a digit.
const SHAPES: [(&str, &str); 6] = [
    ("(os error d)", "(os error)"),
    ("(os error dd)", "(os error)"),
    ("(os error ddd)", "(os error)"),
    ("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "<uuid>"),
    ("dddd-dd-ddTdd:dd:dd.dddZ", "<time>"),
    ("hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh", "<sha256>"),
];

/// The text with identities and times blotted out, and each of `known`.
pub fn steady(text: &str, known: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (found, placeholder) in known {
        text = text.replace(found, placeholder);
    }
    for (shape, placeholder) in SHAPES {
        text = blot(&text, shape, placeholder);
    }
    text
}

fn blot(text: &str, shape: &str, placeholder: &str) -> String {
    let fits = |window: &[char]| {
        window.len() == shape.len()
            && window.iter().zip(shape.chars()).all(|(c, wanted)| match wanted {
                'h' => c.is_ascii_hexdigit(),
                'd' => c.is_ascii_digit(),
                literal => *c == literal,
            })
    };
    let chars: Vec<char> = text.chars().collect();
    let (mut blotted, mut at) = (String::new(), 0);
    while at < chars.len() {
        let end = (at + shape.len()).min(chars.len());
        if fits(&chars[at..end]) {
            blotted.push_str(placeholder);
            at = end;
        } else {
            blotted.push(chars[at]);
            at += 1;
        }
    }
    blotted
}

/// What differs within values, by the field that holds it.
const VOLATILE: [&str; 3] = ["load", "path", "observedGeneration"];

/// The same of data.
pub fn steady_value(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match VOLATILE.contains(&name.as_str()) {
                    true => *field = "<differs>".into(),
                    false => steady_value(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(steady_value),
        Value::String(text) => *text = steady(text, &[]),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A table cell by cell, whatever their widths are in this run.
pub fn steady_table(text: &str) -> String {
    let line = |line: &str| {
        let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(|cell| match cell {
            "now" => "<ago>".to_owned(),
            ago if ago.ends_with(" ago") && ago.starts_with(|c: char| c.is_ascii_digit()) => "<ago>".to_owned(),
            path if path.starts_with("from 127.0.0.1:") => "<path>".to_owned(),
            amount if amount.contains(" GiB") || amount.ends_with(" %") => "<amount>".to_owned(),
            generation if generation.contains("(in effect: ") => "<generation>".to_owned(),
            cell => steady(cell, &[]),
        });
        cells.collect::<Vec<_>>().join(" | ")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
