//! The subject tree: patterns in, and for a literal subject every value whose pattern matches. Pure; the router keeps one
//! behind a lock.
//!
//! A node holds its children, and removing a value frees the nodes that were there for it alone. Walks and drops use an
//! explicit stack, so that a subject of two thousand tokens cannot exhaust a task's. A node that only leads on to another
//! is two small allocations: a hostile client's subjects are nothing but such nodes.

mod members;
mod table;

use std::collections::HashMap;
use std::fmt;

use super::subject::tokens;

use members::Members;
use table::Table;

/// Patterns with values of type `T`, each under an id that the caller chose.
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

/// What begins with the tokens on the way here.
struct Node<T> {
    children: Table<Self>,
    /// What ends here; nothing at most nodes.
    held: Option<Box<Held<T>>>,
}

struct Held<T> {
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

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<T> fmt::Debug for Trie<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trie").field("len", &self.len).finish_non_exhaustive() // what it holds may be thousands deep
    }
}

impl<T> Drop for Trie<T> {
    fn drop(&mut self) {
        std::mem::take(&mut self.root).dismantle();
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: Table::default(), held: None }
    }
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { plain: Members::default(), queues: Table::default() }
    }
}

impl<T> Node<T> {
    /// Drops it and all below it, one after the other.
    fn dismantle(self) {
        let mut left = vec![self];
        while let Some(node) = left.pop() {
            left.extend(node.children.into_values());
        }
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
        let mut at = &mut self.root;
        for token in tokens(pattern) {
            at.children.ensure(token);
            let Some(child) = at.children.get_mut(token) else { return };
            at = child;
        }
        let held = at.held.get_or_insert_default();
        match queue {
            None => held.plain.insert(id, value),
            Some(queue) => {
                held.queues.ensure(queue);
                let Some(members) = held.queues.get_mut(queue) else { return };
                members.insert(id, value);
            }
        }
        self.len += 1;
    }

    /// Takes out the value `id` that was added under `pattern` and `queue`.
    pub fn remove(&mut self, pattern: &[u8], queue: Option<&[u8]>, id: u64) -> Option<T> {
        let mut at = &mut self.root;
        // The depth of the last node on the way that is there for something else too.
        let mut last_shared = 0;
        for (depth, token) in tokens(pattern).enumerate() {
            if at.held.is_some() || at.children.len() > 1 {
                last_shared = depth;
            }
            at = at.children.get_mut(token)?;
        }
        let held = at.held.as_mut()?;
        let value = match queue {
            None => held.plain.remove(id)?,
            Some(queue) => {
                let members = held.queues.get_mut(queue)?;
                let value = members.remove(id)?;
                if members.is_empty() {
                    held.queues.remove(queue);
                }
                value
            }
        };
        self.len -= 1;
        if held.plain.is_empty() && held.queues.is_empty() {
            at.held = None;
            if at.children.is_empty() {
                self.cut(pattern, last_shared);
            }
        }
        Some(value)
    }

    /// Takes out the nodes on the way along `pattern` that are deeper than `depth`.
    fn cut(&mut self, pattern: &[u8], depth: usize) {
        let mut at = &mut self.root;
        let mut tokens = tokens(pattern);
        for token in tokens.by_ref().take(depth) {
            let Some(child) = at.children.get_mut(token) else { return };
            at = child;
        }
        if let Some(branch) = tokens.next().and_then(|token| at.children.remove(token)) {
            branch.dismantle();
        }
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
        let mut ahead = vec![(&self.root, 0)];
        while let Some((node, depth)) = ahead.pop() {
            let Some(token) = tokens.get(depth) else {
                found.collect(node, &mut known);
                continue;
            };
            if let Some(rest) = node.children.get(b">") {
                found.collect(rest, &mut known);
            }
            if let Some(any) = node.children.get(b"*") {
                ahead.push((any, depth + 1));
            }
            // A published `*` or `>` is no wildcard; whoever listens there was just seen.
            if !matches!(*token, b"*" | b">")
                && let Some(child) = node.children.get(token)
            {
                ahead.push((child, depth + 1));
            }
        }
        found
    }

    /// Whether [`Trie::matches`] would find anything; ends at the first that it finds, and copies nothing.
    pub fn has_match(&self, subject: &[u8]) -> bool {
        let tokens: Vec<&[u8]> = tokens(subject).collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return false;
        }
        let mut ahead = vec![(&self.root, 0)];
        while let Some((node, depth)) = ahead.pop() {
            let Some(token) = tokens.get(depth) else {
                if node.held.is_some() {
                    return true;
                }
                continue;
            };
            // Under `>` always ends something, or the node would not be there.
            if node.children.get(b">").is_some() {
                return true;
            }
            ahead.extend(node.children.get(b"*").map(|any| (any, depth + 1)));
            if !matches!(*token, b"*" | b">") {
                ahead.extend(node.children.get(token).map(|child| (child, depth + 1)));
            }
        }
        false
    }
}

impl<T: Clone> Matches<T> {
    /// Adds what ends at `node`. `known` says where each group found stands.
    fn collect<'a>(&mut self, node: &'a Node<T>, known: &mut HashMap<&'a [u8], usize>) {
        let Some(held) = &node.held else { return };
        self.plain.extend(held.plain.iter().cloned());
        for (name, members) in held.queues.iter() {
            let at = *known.entry(name).or_insert(self.queues.len());
            let members = members.iter().cloned();
            match self.queues.get_mut(at) {
                Some((_, group)) => group.extend(members),
                None => self.queues.push((name.into(), members.collect())),
            }
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
        let mut found = trie.matches(subject.as_bytes());
        assert_eq!(trie.has_match(subject.as_bytes()), found != Matches::default(), "{subject}");
        found.plain.sort_unstable();
        found.plain
    }

    /// Nodes there are, the root among them.
    fn nodes(trie: &Trie<u64>) -> usize {
        let mut ahead = vec![&trie.root];
        let mut count = 0;
        while let Some(node) = ahead.pop() {
            count += 1;
            ahead.extend(node.children.iter().map(|(_, child)| child));
        }
        count
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
        assert_eq!(nodes(&trie), 1, "nothing but the root is left");
    }

    #[test]
    fn only_what_nobody_else_needs_is_cut() {
        let mut trie = Trie::default();
        for (id, pattern) in (0..).zip(["a", "a.b.c.d", "a.b.x", "a.b.c.d.e.f"]) {
            trie.insert(pattern.as_bytes(), None, id, id);
        }
        assert_eq!(nodes(&trie), 8);
        assert_eq!(trie.remove(b"a.b.c.d.e.f", None, 3), Some(3));
        assert_eq!(nodes(&trie), 6, "up to the one that holds something");
        assert_eq!(trie.remove(b"a.b.c.d", None, 1), Some(1));
        assert_eq!(nodes(&trie), 4, "up to the fork");
        assert_eq!(trie.remove(b"a", None, 0), Some(0));
        assert_eq!(nodes(&trie), 4, "nothing: it leads on");
        assert_eq!((trie.remove(b"a.b", None, 2), trie.remove(b"a.b.x.y", None, 2)), (None, None));
        assert_eq!((plain(&trie, "a.b.x"), trie.remove(b"a.b.x", None, 2)), (vec![2], Some(2)));
        assert_eq!(nodes(&trie), 1);
    }

    #[test]
    fn deep_trees_are_dropped_without_a_stack_and_shown_without_their_depth() {
        let deep = vec!["x"; 200_000].join(".");
        let mut trie = Trie::default();
        trie.insert(deep.as_bytes(), Some(b"q"), 1, 1);
        assert_eq!(format!("{trie:?}"), "Trie { len: 1, .. }");
        drop(trie);
    }

    #[test]
    fn a_node_that_only_leads_on_is_small() {
        assert!(size_of::<Node<u64>>() <= 24 && size_of::<(Box<[u8]>, Node<u64>)>() <= 40);
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
                let found = trie.matches(subject.as_bytes());
                prop_assert_eq!(trie.has_match(subject.as_bytes()), !found.queues.is_empty() || !found.plain.is_empty());
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
            prop_assert_eq!(nodes(&trie), 1);
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
            prop_assert_eq!(nodes(&trie), 1);
        }
    }
}
