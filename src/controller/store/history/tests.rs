//! What is kept of the story, and what is found in it.

use super::*;
use crate::controller::cluster::{Changes, Cluster, Records, Timing};
use crate::controller::store::{Bounds, Published};
use crate::model::Clock;
use crate::model::event::EventType;

const DAY: i64 = 24 * 3600 * 1000;
const ALL: Room = Room { items: usize::MAX, bytes: usize::MAX };

fn event(number: u64, day: i64, text: usize) -> Event {
    Event {
        number,
        time: Timestamp::from_millis(day * DAY),
        kind: if number.is_multiple_of(1_000) { EventType::Unseen } else { EventType::Log },
        object: EventObject::Worker { name: format!("w{}", number % 2).parse().unwrap() },
        message: "x".repeat(text),
        worker: None,
        stream: None,
        said_at: None,
    }
}

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    cluster: Cluster,
}

impl World {
    fn keeping(kept: Retention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(dir.path(), Bounds { kept, ..Bounds::default() }).unwrap();
        let cluster = Cluster::load(Records::default(), Timing::default(), Clock::start().now());
        Self { _dir: dir, store, cluster }
    }

    fn add(&self, events: impl IntoIterator<Item = Event>) {
        let changes = Changes { events: events.into_iter().collect(), ..Changes::default() };
        self.store.commit(&self.cluster, &changes, Published::default()).unwrap();
    }

    fn kept(&self) -> Vec<u64> {
        self.store.events(0, ALL, &EventFilter::default()).unwrap().items.iter().map(|event| event.number).collect()
    }
}

#[test]
fn events_go_by_their_number_whatever_numbers_they_have() {
    let world = World::keeping(Retention { events: 3, ..Retention::default() });
    world.add((1..=4).map(|number| event(number, 1, 1)));
    assert_eq!(world.kept(), [2, 3, 4]);
    // After a restored backup numbers go on far above.
    world.add([event(1 << 50, 1, 1)]);
    assert_eq!(world.kept(), [3, 4, 1 << 50]);
}

#[test]
fn events_go_by_their_age_and_never_all_of_them() {
    let world = World::keeping(Retention { age: Duration::from_secs(90 * 24 * 3600), ..Retention::default() });
    world.add((1..=50).map(|number| event(number, i64::try_from(number).unwrap(), 1)));
    world.add([event(51, 100, 1)]);
    assert_eq!(world.kept(), (10..=51).collect::<Vec<_>>());
    world.add([event(52, 10_000, 1)]);
    assert_eq!(world.kept(), [52]);
}

#[test]
fn events_go_by_their_size() {
    let world = World::keeping(Retention { bytes: 1 << 20, ..Retention::default() });
    for part in 0..20u64 {
        world.add((1..=100).map(|number| event(part * 100 + number, 1, 3_000)));
    }
    let kept = world.kept();
    assert!(kept.len() > 100 && kept.len() < 400 && kept.last() == Some(&2_000), "{}", kept.len());
}

#[test]
fn an_event_that_cannot_be_read_is_not_in_the_way_of_those_that_come() {
    let world = World::keeping(Retention { events: 3, ..Retention::default() });
    world.add((1..=3).map(|number| event(number, 1, 1)));
    let mut txn = world.store.env.write_txn().unwrap();
    world.store.tables.events.put(&mut txn, &1u64.to_be_bytes(), b"\xc1damaged").unwrap();
    txn.commit().unwrap();
    assert_eq!(world.kept(), [2, 3]);
    world.add([event(4, 1, 1)]);
    assert_eq!(world.kept(), [2, 3, 4]);
}

#[test]
fn what_is_sought_among_many_is_found_page_by_page() {
    let world = World::keeping(Retention::default());
    for part in 0..6u64 {
        world.add((1..=10_000).map(|number| event(part * 10_000 + number, 1, 1)));
    }
    let filter = EventFilter { types: vec![EventType::Unseen], worker: "w0".parse().ok(), ..EventFilter::default() };
    let (mut found, mut after, mut pages) = (Vec::new(), 0, 0);
    loop {
        let page = world.store.events(after, Room { items: 15, bytes: usize::MAX }, &filter).unwrap();
        found.extend(page.items.iter().map(|event| event.number));
        assert!(page.seen > after);
        after = page.seen;
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert_eq!(found, (1..=60).map(|thousand| thousand * 1_000).collect::<Vec<_>>());
    assert!((4..=6).contains(&pages), "{pages}: neither all at once nor without end");
    let none = EventFilter { types: vec![EventType::Failed], ..EventFilter::default() };
    let page = world.store.events(0, ALL, &none).unwrap();
    assert!(page.items.is_empty() && page.more && page.seen == 20_000, "{page:?}");
}
