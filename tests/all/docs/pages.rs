//! The pages, taken apart: blocks of commands with the heading that they stand below, words set as code, links, headings.

use std::collections::{BTreeMap, BTreeSet};

/// The pages that tell people what to type.
const PAGES: &[&str] = &["README.md", "deploy/README.md", "deploy/examples/README.md", "schemas/README.md"];

/// One page.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) path: &'static str,
    /// Fenced blocks marked `sh`.
    pub(super) blocks: Vec<Block>,
    /// What stands between single backticks, outside of blocks.
    pub(super) spans: Vec<String>,
    /// Where links lead.
    pub(super) links: Vec<String>,
    /// Headings, as links name them.
    pub(super) anchors: BTreeSet<String>,
}

/// Commands to type.
#[derive(Debug)]
pub(super) struct Block {
    /// The heading above.
    pub(super) title: String,
    /// Counted below that heading from 1.
    pub(super) number: usize,
    pub(super) text: String,
}

pub(super) fn all() -> Vec<Page> {
    PAGES.iter().map(|path| take_apart(path, &super::read(path))).collect()
}

fn take_apart(path: &'static str, text: &str) -> Page {
    let mut page = Page { path, ..Page::default() };
    let mut title = String::new();
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    let mut prose = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if language == "sh" {
                let number = counted.entry(title.clone()).and_modify(|number| *number += 1).or_insert(1);
                page.blocks.push(Block { title: title.clone(), number: *number, text: block.join("\n") });
            }
        } else if line.starts_with('#') {
            line.trim_start_matches('#').trim().clone_into(&mut title);
            page.anchors.insert(anchor(&title));
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    // A span may go on in the next line.
    let prose = prose.replace('\n', " ");
    page.spans = prose.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    page.links = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect();
    page
}

/// A heading as links name it.
fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

#[test]
fn a_page_is_taken_apart() {
    let text = "# One\nsee `a b` and [two](#two-things), `c\nd`\n```sh\nx\n```\n## Two things\n```text\nno\n```\n```sh\ny\nz\n```\n";
    let page = take_apart("p", text);
    assert_eq!(page.spans, ["a b", "c d"]);
    assert_eq!(page.links, ["#two-things"]);
    assert!(page.anchors.contains("two-things"));
    let blocks: Vec<_> = page.blocks.iter().map(|b| (b.title.as_str(), b.number, b.text.as_str())).collect();
    assert_eq!(blocks, [("One", 1, "x"), ("Two things", 1, "y\nz")]);
}
