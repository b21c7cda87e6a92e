//! Seeded randomness: a failure prints its seed, and the seed brings it back.

use std::time::{SystemTime, UNIX_EPOCH};

/// Repeats one run: the seed that a failing test printed.
const SEED_VARIABLE: &str = "RINGFENCE_TEST_SEED";

/// The seeds of a test: its fixed ones and a fresh one, or the one that the environment names.
pub fn seeds(fixed: impl IntoIterator<Item = u64>) -> Vec<u64> {
    named().map_or_else(|| fixed.into_iter().chain([fresh()]).collect(), |seed| vec![seed])
}

/// The seed of a test that has one only.
pub fn seed() -> u64 {
    named().unwrap_or_else(fresh)
}

fn named() -> Option<u64> {
    std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().expect("the seed is a number"))
}

fn fresh() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// How to repeat a run, for messages.
pub fn repeat(seed: u64) -> String {
    format!("{SEED_VARIABLE}={seed}")
}

/// SplitMix64: small, and the same on every machine and with every version of every crate.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a bound that is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True this many times of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of some.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
