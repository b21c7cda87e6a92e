//! How long to wait after the n-th failure in a row.
//!
//! Owns: the arithmetic and the jitter. Must not: sleep, or count failures; callers do.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// An exponential delay between two bounds: doubled with every failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first failure.
    pub min: Duration,
    /// The delay is never longer than this, jitter included.
    pub max: Duration,
}

impl Backoff {
    /// The delay after `failures` failures in a row (counted from 1), spread by `jitter` in `0.0..1.0`.
    ///
    /// The spread is ±20 %: enough to part the retries of things that failed together.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        // 2^31 times any useful minimum is beyond any useful maximum, so the shift may stop there.
        let factor = 1_u32 << failures.saturating_sub(1).min(31);
        let nominal = self.min.saturating_mul(factor).min(self.max);
        nominal.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0)).min(self.max)
    }
}

/// A random number in `0.0..1.0`, good enough to spread load and for nothing else.
///
/// The standard library seeds every `RandomState` anew; that saves a dependency on a generator.
#[must_use]
pub fn jitter() -> f64 {
    let bits = u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default();
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };

    #[test]
    fn doubles_up_to_the_maximum() {
        let delays: Vec<_> = [1, 2, 3, 9, 10, u32::MAX].map(|n| BACKOFF.delay(n, 0.5).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        assert_eq!(BACKOFF.delay(1, 0.0).as_millis(), 80);
        assert_eq!(BACKOFF.delay(1, 1.0).as_millis(), 120);
        assert_eq!(BACKOFF.delay(20, 1.0), BACKOFF.max);
        assert!((0..1000).map(|_| jitter()).all(|j| (0.0..1.0).contains(&j)));
    }
}
