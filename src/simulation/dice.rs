//! The one source of chance: everything random in a run comes from here, in the order in which the run asks.

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// A seeded generator. XorShift, as it is small, and its numbers do not change with releases.
pub(super) struct Dice(TestRng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        // XorShift begins slowly where most bits are zero, as in small seeds; multiplying by odd constants spreads them.
        let low = (seed.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let high = (seed ^ 0x5555_5555_5555_5555).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
        let mut dice = Self(TestRng::from_seed(RngAlgorithm::XorShift, &bytes));
        (0..8).for_each(|_| {
            dice.0.next_u64();
        });
        dice
    }

    /// From `low` up to and with `high`.
    pub(super) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    /// An index below `len`.
    pub(super) fn below(&mut self, len: usize) -> usize {
        usize::try_from(self.range(0, len as u64 - 1)).unwrap()
    }

    /// True so many times in a thousand.
    pub(super) fn chance(&mut self, permille: u64) -> bool {
        self.range(0, 999) < permille
    }

    /// One of these; `None` when there are none.
    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }

    /// Mostly short, sometimes far longer: up to `usual`, and in `permille` of all cases up to `rare`.
    pub(super) fn delay(&mut self, usual: u64, permille: u64, rare: u64) -> u64 {
        if self.chance(permille) { self.range(usual, rare) } else { self.range(0, usual) }
    }
}
