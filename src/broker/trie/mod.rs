//! The subject tree: patterns in, and for a literal subject every value whose pattern matches. Pure; the router keeps one
//! behind a lock.
//!
//! Nodes live in one arena and walks use an explicit stack, so that neither a subject of two thousand tokens nor the
//! drop of the tree can exhaust a task's stack.

mod members;
mod table;

use std::collections::HashMap;

use super::subject::tokens;

use members::Members;
use table::Table;

/// Patterns with values of type `T`, each under an id that the caller chose.
#[derive(Debug)]
pub struct Trie<T> {
    nodes: Vec<Node<T>>,
    free: Vec<usize>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    parent: usize,
    /// The token on the way here from the parent.
    token: Box<[u8]>,
    children: HashMap<Box<[u8]>, usize>,
    plain: Members<T>,
    queues: Table<Members<T>>,
}

/// What matched a subject.
#[derive(Debug, PartialEq, Eq)]
pub struct Matches<T> {
    /// Each gets the message.
    pub plain: Vec<T>,
    /// One of each group gets the message. Groups of one name under different patterns are one group.
    pub queues: Vec<(Box<[u8]>, Vec<T>)>,
}

impl<T> Default for Matches<T> {
    fn default() -> Self {
        Self { plain: Vec::new(), queues: Vec::new() }
    }
}

const ROOT: usize = 0;

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::new(ROOT, &[])], free: Vec::new(), len: 0 }
    }
}

impl<T> Node<T> {
    fn new(parent: usize, token: &[u8]) -> Self {
        Self {
            parent,
            token: token.into(),
            children: HashMap::new(),
            plain: Members::default(),
            queues: Table::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plain.is_empty() && self.queues.is_empty()
    }
}

impl<T: Clone> Trie<T> {
    /// Values held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `value` under `pattern`, which the caller has checked to be a valid subject.
    pub fn insert(&mut self, pattern: &[u8], queue: Option<&[u8]>, id: u64, value: T) {
        let mut at = ROOT;
        for token in tokens(pattern) {
            at = match self.nodes.get(at).and_then(|node| node.children.get(token)) {
                Some(child) => *child,
                None => self.add_child(at, token),
            };
        }
        let Some(node) = self.nodes.get_mut(at) else { return };
        match queue {
            None => node.plain.insert(id, value),
            Some(queue) => {
                node.queues.ensure(queue);
                let Some(members) = node.queues.get_mut(queue) else { return };
                members.insert(id, value);
            }
        }
        self.len += 1;
    }

    /// Takes out the value `id` that was added under `pattern` and `queue`.
    pub fn remove(&mut self, pattern: &[u8], queue: Option<&[u8]>, id: u64) -> Option<T> {
        let mut at = ROOT;
        for token in tokens(pattern) {
            at = *self.nodes.get(at)?.children.get(token)?;
        }
        let node = self.nodes.get_mut(at)?;
        let value = match queue {
            None => node.plain.remove(id)?,
            Some(queue) => {
                let members = node.queues.get_mut(queue)?;
                let value = members.remove(id)?;
                if members.is_empty() {
                    node.queues.remove(queue);
                }
                value
            }
        };
        self.len -= 1;
        self.prune(at);
        Some(value)
    }

    /// Everything whose pattern matches the literal `subject`; nothing when it has an empty token.
    pub fn matches(&self, subject: &[u8]) -> Matches<T> {
        let mut found = Matches::default();
        // Where each group's name stands among those found.
        let mut known = HashMap::new();
        let tokens: Vec<&[u8]> = tokens(subject).collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return found;
        }
        let mut ahead = vec![(ROOT, 0)];
        while let Some((at, depth)) = ahead.pop() {
            let Some(node) = self.nodes.get(at) else { continue };
            let Some(token) = tokens.get(depth) else {
                self.collect(at, &mut found, &mut known);
                continue;
            };
            if let Some(rest) = node.children.get(&b">"[..]) {
                self.collect(*rest, &mut found, &mut known);
            }
            if let Some(any) = node.children.get(&b"*"[..]) {
                ahead.push((*any, depth + 1));
            }
            // A published `*` or `>` is no wildcard; whoever listens there was just seen.
            if !matches!(*token, b"*" | b">")
                && let Some(child) = node.children.get(*token)
            {
                ahead.push((*child, depth + 1));
            }
        }
        found
    }

    fn collect<'a>(&'a self, at: usize, found: &mut Matches<T>, known: &mut HashMap<&'a [u8], usize>) {
        let Some(node) = self.nodes.get(at) else { return };
        found.plain.extend(node.plain.iter().cloned());
        for (name, members) in node.queues.iter() {
            let at = *known.entry(name).or_insert(found.queues.len());
            let members = members.iter().cloned();
            match found.queues.get_mut(at) {
                Some((_, group)) => group.extend(members),
                None => found.queues.push((name.into(), members.collect())),
            }
        }
    }

    fn add_child(&mut self, parent: usize, token: &[u8]) -> usize {
        let node = Node::new(parent, token);
        let at = match self.free.pop() {
            Some(at) => {
                if let Some(slot) = self.nodes.get_mut(at) {
                    *slot = node;
                }
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        if let Some(parent) = self.nodes.get_mut(parent) {
            parent.children.insert(token.into(), at);
        }
        at
    }

    /// Frees `at` and its ancestors as far as they hold nothing any more.
    fn prune(&mut self, mut at: usize) {
        while at != ROOT {
            let Some(node) = self.nodes.get_mut(at).filter(|node| node.is_empty()) else { return };
            let (parent, token) = (node.parent, std::mem::take(&mut node.token));
            *node = Node::new(ROOT, &[]);
            self.free.push(at);
            if let Some(parent) = self.nodes.get_mut(parent) {
                parent.children.remove(&token);
            }
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::members::steps;
    use super::*;
    use crate::broker::subject::strategies::{literal, matches, pattern};

    fn plain(trie: &Trie<u64>, subject: &str) -> Vec<u64> {
        let mut found = trie.matches(subject.as_bytes()).plain;
        found.sort_unstable();
        found
    }

    #[test]
    fn wildcards() {
        let mut trie = Trie::default();
        for (id, pattern) in ["a", "a.b", "a.*", "a.>", "*.b", ">", "*"].iter().enumerate() {
            trie.insert(pattern.as_bytes(), None, id as u64, id as u64);
        }
        assert_eq!(plain(&trie, "a"), [0, 5, 6]);
        assert_eq!(plain(&trie, "a.b"), [1, 2, 3, 4, 5]);
        assert_eq!(plain(&trie, "a.b.c"), [3, 5]);
        assert_eq!(plain(&trie, "a.*"), [2, 3, 5], "a published wildcard is no wildcard");
        assert!(plain(&trie, "a..b").is_empty() && plain(&trie, "").is_empty());
    }

    #[test]
    fn one_queue_name_is_one_group() {
        let mut trie = Trie::default();
        trie.insert(b"a.*", Some(b"q"), 1, 1);
        trie.insert(b"a.b", Some(b"q"), 2, 2);
        trie.insert(b"a.b", Some(b"r"), 3, 3);
        let groups = trie.matches(b"a.b").queues;
        assert_eq!(groups.len(), 2);
        assert_eq!(groups.iter().map(|(_, members)| members.len()).sum::<usize>(), 3);
    }

    #[test]
    fn two_thousand_tokens_deep() {
        let deep = vec!["x"; 2_000].join(".");
        let mut trie = Trie::default();
        trie.insert(deep.as_bytes(), None, 1, 1);
        assert_eq!(plain(&trie, &deep), [1]);
        assert_eq!(trie.remove(deep.as_bytes(), None, 1), Some(1));
        assert_eq!(trie.nodes.len() - trie.free.len(), 1, "nothing but the root is left");
    }

    #[test]
    fn twenty_thousand_of_one_subject_go_in_so_many_steps() {
        const COUNT: u64 = 20_000;
        for queue in [None, Some(&b"q"[..])] {
            let mut trie = Trie::default();
            for id in 0..COUNT {
                trie.insert(b"a.b", queue, id, id);
            }
            steps::take();
            // From both ends and the middle: whatever order a table hands them back in.
            for id in (0..COUNT).map(|at| at * 7_919 % COUNT) {
                assert_eq!(trie.remove(b"a.b", queue, id), Some(id));
            }
            assert!(trie.is_empty());
            let steps = steps::take();
            assert!(steps < 4 * COUNT as usize, "{steps} steps");
        }
    }

    /// Where each group is compared with each other, this takes minutes.
    #[test]
    fn thirty_thousand_groups_under_two_patterns() {
        const COUNT: u64 = 30_000;
        let mut trie = Trie::default();
        let names: Vec<String> = (0..COUNT).map(|at| format!("a queue group of some length, number {at}")).collect();
        for (id, name) in (0..).zip(&names) {
            trie.insert(b"a", Some(name.as_bytes()), id, id);
            trie.insert(b"*", Some(name.as_bytes()), COUNT + id, COUNT + id);
        }
        let found = trie.matches(b"a").queues;
        assert_eq!(found.len(), names.len());
        for (name, mut members) in found {
            members.sort_unstable();
            assert_eq!(members, [members[0], members[0] + COUNT]);
            assert_eq!(*name, *names[members[0] as usize].as_bytes());
        }
        for (id, name) in (0..).zip(&names) {
            assert_eq!(trie.remove(b"a", Some(name.as_bytes()), id), Some(id));
            assert_eq!(trie.remove(b"*", Some(name.as_bytes()), COUNT + id), Some(COUNT + id));
        }
        assert!(trie.is_empty());
    }

    proptest! {
        #[test]
        fn many_groups_agree_with_a_list(
            steps in prop::collection::vec((pattern(), 0..40u8, prop::bool::weighted(0.7), any::<prop::sample::Index>()), 1..200),
            subjects in prop::collection::vec(literal(), 1..4),
        ) {
            let mut trie = Trie::default();
            let mut list: Vec<(u64, String, String)> = Vec::new();
            for (id, (pattern, queue, add, which)) in steps.into_iter().enumerate() {
                if add || list.is_empty() {
                    let queue = format!("q{queue}");
                    trie.insert(pattern.as_bytes(), Some(queue.as_bytes()), id as u64, id as u64);
                    list.push((id as u64, pattern, queue));
                } else {
                    let (gone, pattern, queue) = list.swap_remove(which.index(list.len()));
                    prop_assert_eq!(trie.remove(pattern.as_bytes(), Some(queue.as_bytes()), gone), Some(gone));
                    prop_assert_eq!(trie.remove(pattern.as_bytes(), Some(queue.as_bytes()), gone), None);
                }
            }
            for subject in &subjects {
                let mut expected: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
                for (id, _, queue) in list.iter().filter(|(_, pattern, _)| matches(pattern, subject)) {
                    expected.entry(queue.clone().into_bytes()).or_default().push(*id);
                }
                expected.values_mut().for_each(|members| members.sort_unstable());
                let found = trie.matches(subject.as_bytes());
                prop_assert!(found.plain.is_empty());
                prop_assert_eq!(found.queues.len(), expected.len(), "each name once");
                for (name, mut members) in found.queues {
                    members.sort_unstable();
                    prop_assert_eq!(Some(&members), expected.get(&*name));
                }
            }
        }

        #[test]
        fn many_under_few_patterns_come_and_go_in_any_order(
            steps in prop::collection::vec((0..3usize, 0..4usize, prop::bool::weighted(0.6), any::<prop::sample::Index>()), 1..300),
        ) {
            let mut trie = Trie::default();
            let mut list: Vec<(u64, &str, Option<&str>)> = Vec::new();
            for (id, (pattern, queue, add, which)) in steps.into_iter().enumerate() {
                let id = id as u64;
                if add || list.is_empty() {
                    let (pattern, queue) = (["a", "*", ">"][pattern], [None, None, Some("q"), Some("r")][queue]);
                    trie.insert(pattern.as_bytes(), queue.map(str::as_bytes), id, id);
                    list.push((id, pattern, queue));
                } else {
                    let (gone, pattern, queue) = list.swap_remove(which.index(list.len()));
                    let queue = queue.map(str::as_bytes);
                    prop_assert_eq!(trie.remove(pattern.as_bytes(), queue, gone), Some(gone));
                    prop_assert_eq!(trie.remove(pattern.as_bytes(), queue, gone), None);
                }
            }
            prop_assert_eq!(trie.len(), list.len());
            let mut expected: Vec<u64> = list.iter().filter(|(_, _, q)| q.is_none()).map(|(id, _, _)| *id).collect();
            expected.sort_unstable();
            prop_assert_eq!(plain(&trie, "a"), expected);
            for (id, pattern, queue) in list {
                prop_assert_eq!(trie.remove(pattern.as_bytes(), queue.map(str::as_bytes), id), Some(id));
            }
            prop_assert_eq!(trie.nodes.len() - trie.free.len(), 1);
        }

        #[test]
        fn agrees_with_a_list_of_patterns(
            steps in prop::collection::vec((pattern(), prop::option::of("[qr]"), any::<bool>()), 1..40),
            subjects in prop::collection::vec(literal(), 1..8),
        ) {
            let mut trie = Trie::default();
            let mut list: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
            for (id, (pattern, queue, add)) in steps.into_iter().enumerate() {
                if add || list.is_empty() {
                    trie.insert(pattern.as_bytes(), queue.as_deref().map(str::as_bytes), id as u64, id as u64);
                    list.insert(id as u64, (pattern, queue));
                } else {
                    let (gone, (pattern, queue)) = list.pop_first().unwrap();
                    prop_assert_eq!(
                        trie.remove(pattern.as_bytes(), queue.as_deref().map(str::as_bytes), gone),
                        Some(gone)
                    );
                }
                prop_assert_eq!(trie.len(), list.len());
                for subject in &subjects {
                    let expected = |queue: Option<&str>| -> Vec<u64> {
                        list.iter()
                            .filter(|(_, (p, q))| q.as_deref() == queue && matches(p, subject))
                            .map(|(id, _)| *id)
                            .collect()
                    };
                    prop_assert_eq!(plain(&trie, subject), expected(None));
                    let mut groups = trie.matches(subject.as_bytes()).queues;
                    groups.iter_mut().for_each(|(_, members)| members.sort_unstable());
                    for queue in ["q", "r"] {
                        let members = groups.iter().find(|(n, _)| **n == *queue.as_bytes()).map(|(_, m)| m.clone());
                        prop_assert_eq!(members.unwrap_or_default(), expected(Some(queue)));
                    }
                }
            }
            for (id, (pattern, queue)) in list {
                trie.remove(pattern.as_bytes(), queue.as_deref().map(str::as_bytes), id);
            }
            prop_assert!(trie.is_empty());
            prop_assert_eq!(trie.nodes.len() - trie.free.len(), 1);
        }
    }
}
