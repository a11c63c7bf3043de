//! The subject tree: patterns in, and for a literal subject every value whose pattern matches. Pure; the router keeps one
//! behind a lock.
//!
//! Nodes live in one arena and walks use an explicit stack, so that neither a subject of two thousand tokens nor the
//! drop of the tree can exhaust a task's stack.

mod members;

use std::collections::HashMap;

use super::subject::tokens;

use members::Members;

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
    queues: Vec<(Box<[u8]>, Members<T>)>,
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
        Self { parent, token: token.into(), children: HashMap::new(), plain: Members::default(), queues: Vec::new() }
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
            Some(queue) => match node.queues.iter_mut().find(|(name, _)| **name == *queue) {
                Some((_, members)) => members.insert(id, value),
                None => {
                    let mut members = Members::default();
                    members.insert(id, value);
                    node.queues.push((queue.into(), members));
                }
            },
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
                let group = node.queues.iter().position(|(name, _)| **name == *queue)?;
                let (_, members) = node.queues.get_mut(group)?;
                let value = members.remove(id)?;
                if members.is_empty() {
                    node.queues.swap_remove(group);
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
        let tokens: Vec<&[u8]> = tokens(subject).collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return found;
        }
        let mut ahead = vec![(ROOT, 0)];
        while let Some((at, depth)) = ahead.pop() {
            let Some(node) = self.nodes.get(at) else { continue };
            let Some(token) = tokens.get(depth) else {
                self.collect(at, &mut found);
                continue;
            };
            if let Some(rest) = node.children.get(&b">"[..]) {
                self.collect(*rest, &mut found);
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

    fn collect(&self, at: usize, found: &mut Matches<T>) {
        let Some(node) = self.nodes.get(at) else { return };
        found.plain.extend(node.plain.iter().cloned());
        for (name, members) in &node.queues {
            let members = members.iter().cloned();
            match found.queues.iter_mut().find(|(known, _)| known == name) {
                Some((_, group)) => group.extend(members),
                None => found.queues.push((name.clone(), members.collect())),
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

    proptest! {
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
