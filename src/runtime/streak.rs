//! Says which failures of an unbroken row are worth a log line.
//!
//! Owns: the decision. Must not: log; the caller knows what failed.

use std::time::Duration;

use tokio::time::Instant;

/// A row of failures of one thing. The first is reported at once, later ones once a minute.
#[derive(Debug, Default)]
pub struct Streak {
    failures: u64,
    reported: Option<Instant>,
}

impl Streak {
    const EVERY: Duration = Duration::from_secs(60);

    /// Counts a failure; true if it should be logged.
    pub fn failed(&mut self, now: Instant) -> bool {
        self.failures += 1;
        let due = self.reported.is_none_or(|at| now.saturating_duration_since(at) >= Self::EVERY);
        if due {
            self.reported = Some(now);
        }
        due
    }

    /// Ends the row; the number of failures it had, if it had any.
    pub fn recovered(&mut self) -> Option<u64> {
        let Self { failures, reported: _ } = std::mem::take(self);
        (failures > 0).then_some(failures)
    }

    /// The failures counted so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_the_first_and_then_once_a_minute() {
        let start = Instant::now();
        let mut streak = Streak::default();
        let reported: Vec<u64> =
            (0..130).step_by(10).filter(|&s| streak.failed(start + Duration::from_secs(s))).collect();
        assert_eq!(reported, [0, 60, 120]);
        assert_eq!(streak.recovered(), Some(13));
        assert_eq!(streak.recovered(), None);
        assert!(streak.failed(start + Duration::from_secs(131)), "a new row is reported at once");
    }
}
