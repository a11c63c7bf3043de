//! Patterns, the subject tree and permissions against definitions written as naively as can be.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orchard_fuzz::permission::{Permissions, Subscribe};
use orchard_fuzz::subject::{covers, is_valid, matches, overlaps};
use orchard_fuzz::trie::Trie;
use orchard_fuzz::{Choices, naive_match, naive_rules, universe};

static UNIVERSE: LazyLock<Vec<String>> = LazyLock::new(universe);

/// A tree and a plain list take the same changes and answer the same.
fn tree(choices: &mut Choices<'_>) {
    let mut tree: Trie<u64> = Trie::default();
    let mut list: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
    for id in 0..choices.below(24) as u64 {
        match choices.below(4) {
            0 if !list.is_empty() => {
                let id = *list.keys().nth(choices.below(list.len())).unwrap();
                let (pattern, queue) = list.remove(&id).unwrap();
                let queue = queue.as_deref().map(str::as_bytes);
                assert_eq!(tree.remove(pattern.as_bytes(), queue, id), Some(id));
                assert_eq!(tree.remove(pattern.as_bytes(), queue, id), None);
            }
            _ => {
                let pattern = choices.subject(true);
                let queue = [None, None, Some("q"), Some("r")][choices.below(4)].map(str::to_owned);
                if is_valid(pattern.as_bytes()) {
                    tree.insert(pattern.as_bytes(), queue.as_deref().map(str::as_bytes), id, id);
                    list.insert(id, (pattern, queue));
                }
            }
        }
        assert_eq!((tree.len(), tree.is_empty()), (list.len(), list.is_empty()));
        let subject = choices.subject(true);
        let mut found = tree.matches(subject.as_bytes());
        found.plain.sort_unstable();
        let hears = |(pattern, _): &(String, Option<String>)| naive_match(pattern, &subject);
        let plain: Vec<u64> = list.iter().filter(|(_, s)| s.1.is_none() && hears(s)).map(|(id, _)| *id).collect();
        assert_eq!(found.plain, plain, "{subject} in {list:?}");
        let mut groups: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, held) in list.iter().filter(|(_, held)| hears(held)) {
            if let Some(queue) = &held.1 {
                groups.entry(queue).or_default().push(*id);
            }
        }
        let found: BTreeMap<String, Vec<u64>> = found
            .queues
            .into_iter()
            .map(|(name, mut members)| {
                members.sort_unstable();
                (String::from_utf8(name.to_vec()).unwrap(), members)
            })
            .collect();
        assert!(found.iter().map(|(name, members)| (name.as_str(), members)).eq(groups.iter().map(|(n, m)| (*n, m))));
    }
}

/// What a pattern covers and overlaps, by enumeration.
fn patterns(choices: &mut Choices<'_>) {
    let (a, b) = (choices.subject(true), choices.subject(true));
    let _ = (covers(a.as_bytes(), b.as_bytes()), overlaps(a.as_bytes(), b.as_bytes()));
    let matched = matches(a.as_bytes(), b.as_bytes());
    if !is_valid(a.as_bytes()) || !is_valid(b.as_bytes()) {
        return;
    }
    assert_eq!(matched, naive_match(&a, &b), "{a} matches {b}");
    let (mut covered, mut both) = (true, false);
    for subject in UNIVERSE.iter().chain([&"d".to_owned(), &"a.d".to_owned()]) {
        let (in_a, in_b) = (naive_match(&a, subject), naive_match(&b, subject));
        assert_eq!(covers(a.as_bytes(), subject.as_bytes()), in_a, "{a} {subject}");
        covered &= in_a || !in_b;
        both |= in_a && in_b;
    }
    if !a.contains('d') && !b.contains('d') {
        assert_eq!(covers(a.as_bytes(), b.as_bytes()), covered, "{a} covers {b}");
        assert_eq!(overlaps(a.as_bytes(), b.as_bytes()), both, "{a} overlaps {b}");
    }
}

/// No publication and no subscription passes that the rules forbid.
fn permissions(choices: &mut Choices<'_>) {
    let permissions = Permissions { publish: choices.rules(), subscribe: choices.rules(), ..Permissions::default() };
    let subject = choices.subject(true);
    assert_eq!(permissions.may_publish(subject.as_bytes()), naive_rules(&permissions.publish, &subject), "{subject}");
    let wanted = choices.subject(true);
    let filter = match permissions.may_subscribe(wanted.as_bytes(), None) {
        Subscribe::Denied => return,
        Subscribe::Granted => Vec::new(),
        Subscribe::Filtered(filter) => filter,
    };
    for subject in UNIVERSE.iter().filter(|subject| naive_match(&wanted, subject)) {
        let shown = !filter.iter().any(|p| matches(p, subject.as_bytes()));
        assert_eq!(
            shown,
            naive_rules(&permissions.subscribe, subject),
            "{wanted} shows {subject} under {permissions:?}"
        );
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    match choices.below(3) {
        0 => tree(&mut choices),
        1 => patterns(&mut choices),
        _ => permissions(&mut choices),
    }
});
