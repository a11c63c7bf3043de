//! The workers that each tick looks at are those that a look at all of them would find.

use super::*;

#[derive(Clone, Debug)]
enum Move {
    Join(u8),
    Drain(u8, Option<u64>),
    Resume(u8),
    Delete(u8),
    Pass(u16),
    Restart,
    /// What was stored then is what there is, and what came since could not be stored.
    GoBack,
    Store,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..4u8).prop_map(Move::Join),
        3 => (0..4u8, prop::option::of(0..90u64)).prop_map(|(n, deadline)| Move::Drain(n, deadline)),
        2 => (0..4u8).prop_map(Move::Resume),
        1 => (0..4u8).prop_map(Move::Delete),
        4 => any::<u16>().prop_map(Move::Pass),
        1 => Just(Move::Restart),
        2 => Just(Move::GoBack),
        2 => Just(Move::Store),
    ];
    prop::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_they_are_those_that_a_scan_finds(moves in moves()) {
        let mut world = World::new();
        let mut stored = world.records();
        for step in moves {
            let worker = |n: u8| format!("w{n}");
            match step {
                Move::Join(n) => drop(world.join(&worker(n), 1)),
                Move::Drain(n, deadline) => {
                    let _ = world.cluster.drain_worker(&name(&worker(n)), deadline, world.now, &mut world.changes);
                }
                Move::Resume(n) => {
                    let _ = world.cluster.set_paused(&name(&worker(n)), false, world.now, &mut world.changes);
                }
                Move::Delete(n) => {
                    let _ = world.cluster.delete_worker(&name(&worker(n)), true, world.now, &mut world.changes);
                }
                Move::Pass(millis) => world.pass(millis.into()),
                Move::Restart => world.restart(),
                Move::GoBack => world.go_back(stored.clone()),
                Move::Store => stored = world.records(),
            }
            world.cluster.check_watched();
        }
    }
}
