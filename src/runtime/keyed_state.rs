//! The state of a [`KeyedQueue`](super::KeyedQueue), as a machine that is told the time.
//!
//! Owns: which key may run when. Must not: read a clock, wait, or run anything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::backoff::Backoff;

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<K> {
    /// Run this key; it counts as running until `finish`.
    Run(K),
    /// Nothing may run before this instant.
    At(Instant),
    /// Nothing is waiting.
    Idle,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ended {
    Done,
    Requeue(Duration),
    Failed { jitter: f64 },
}

/// Invariant: `(t, k)` is in `schedule` exactly when `entries[k]` is not running and its `due` is `t`.
#[derive(Debug)]
pub(super) struct State<K> {
    min_interval: Duration,
    backoff: Backoff,
    entries: BTreeMap<K, Entry>,
    schedule: BTreeSet<(Instant, K)>,
    /// When each started key may run again, oldest first: then its entry can be forgotten if nothing wants it.
    cooling: VecDeque<(Instant, K)>,
}

#[derive(Debug, Default)]
struct Entry {
    /// When it is wanted. For a running key: as asked for, not yet held against `not_before`.
    due: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    running: bool,
    /// The queue was cleared during the run: how it ends is of no interest.
    disowned: bool,
}

impl<K: Ord + Clone> State<K> {
    pub(super) fn new(min_interval: Duration, backoff: Backoff) -> Self {
        Self { min_interval, backoff, entries: BTreeMap::new(), schedule: BTreeSet::new(), cooling: VecDeque::new() }
    }

    /// Wants `key` run at `at`, or as soon after as it may. An earlier wish stands.
    pub(super) fn add(&mut self, key: K, at: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.running {
            entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
            return;
        }
        let at = entry.not_before.map_or(at, |limit| limit.max(at));
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = entry.due.replace(at) {
            self.schedule.remove(&(due, key.clone()));
        }
        self.schedule.insert((at, key));
    }

    /// The next key to run. Ask again until it says otherwise.
    pub(super) fn next(&mut self, now: Instant) -> Next<K> {
        self.forget(now);
        match self.schedule.first() {
            None => return Next::Idle,
            Some((due, _)) if *due > now => return Next::At(*due),
            Some(_) => {}
        }
        let Some((_, key)) = self.schedule.pop_first() else { return Next::Idle };
        let allowed = now + self.min_interval;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.due = None;
        entry.running = true;
        entry.not_before = Some(allowed);
        self.cooling.push_back((allowed, key.clone()));
        Next::Run(key)
    }

    /// Ends the run of `key`. The delay before the next attempt, if it failed.
    pub(super) fn finish(&mut self, key: &K, ended: Ended, now: Instant) -> Option<Duration> {
        let entry = self.entries.get_mut(key)?;
        entry.running = false;
        let wanted = entry.due.take();
        let ended = if std::mem::take(&mut entry.disowned) { Ended::Done } else { ended };
        let mut delay = None;
        let requeue = match ended {
            Ended::Failed { jitter } => {
                entry.failures = entry.failures.saturating_add(1);
                let wait = self.backoff.delay(entry.failures, jitter);
                // Not even a fresh wish shortens this: what failed is most likely the API server, for every key.
                let until = now + wait;
                entry.not_before = entry.not_before.max(Some(until));
                delay = Some(wait);
                Some(until)
            }
            Ended::Requeue(after) => {
                entry.failures = 0;
                Some(now + after)
            }
            Ended::Done => {
                entry.failures = 0;
                None
            }
        };
        match wanted.into_iter().chain(requeue).min() {
            Some(at) => self.add(key.clone(), at),
            // Otherwise it stays until `forget`, so that the interval is kept.
            None if entry.not_before.is_none_or(|limit| limit <= now) => drop(self.entries.remove(key)),
            None => {}
        }
        delay
    }

    /// Forgets everything that waits and every failure. What runs, runs on, and is then forgotten too.
    pub(super) fn clear(&mut self) {
        self.schedule.clear();
        for entry in self.entries.values_mut() {
            entry.due = None;
            entry.failures = 0;
            entry.disowned = entry.running;
        }
    }

    /// How many keys wait, those that also run not counted.
    pub(super) fn waiting(&self) -> usize {
        self.schedule.len()
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.cooling.front()
            && *at <= now
            && let Some((_, key)) = self.cooling.pop_front()
        {
            if self.entries.get(&key).is_some_and(|entry| !entry.running && entry.due.is_none()) {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Ended = Ended::Failed { jitter: 0.5 };

    struct Clock(Instant, State<&'static str>);

    impl Clock {
        fn new() -> Self {
            let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
            Self(Instant::now(), State::new(Duration::from_millis(100), backoff))
        }
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }
        fn add(&mut self, key: &'static str, ms: u64) {
            self.1.add(key, self.at(ms));
        }
        fn next(&mut self, ms: u64) -> Next<&'static str> {
            self.1.next(self.at(ms))
        }
        fn finish(&mut self, key: &'static str, ended: Ended, ms: u64) {
            self.1.finish(&key, ended, self.at(ms));
        }
    }

    #[test]
    fn a_key_queued_twice_runs_once_in_order_of_arrival() {
        let mut q = Clock::new();
        q.add("b", 0);
        q.add("a", 1);
        q.add("b", 2);
        assert_eq!([q.next(5), q.next(5), q.next(5)], [Next::Run("b"), Next::Run("a"), Next::Idle]);
    }

    #[test]
    fn a_key_added_while_running_runs_again_and_never_beside_itself() {
        let mut q = Clock::new();
        q.add("a", 0);
        assert_eq!(q.next(0), Next::Run("a"));
        q.add("a", 10);
        assert_eq!(q.next(10), Next::Idle);
        q.finish("a", Ended::Done, 20);
        assert_eq!(q.next(20), Next::At(q.at(100)), "the interval between starts");
        assert_eq!(q.next(100), Next::Run("a"));
        q.finish("a", Ended::Done, 400);
        q.add("a", 400);
        assert_eq!(q.next(400), Next::Run("a"), "a long run has used up its interval");
    }

    #[test]
    fn the_interval_holds_after_the_key_went_idle_and_leaves_nothing_behind() {
        let mut q = Clock::new();
        q.add("a", 0);
        assert_eq!(q.next(0), Next::Run("a"));
        q.finish("a", Ended::Done, 1);
        q.add("a", 2);
        assert_eq!(q.next(2), Next::At(q.at(100)));
        assert_eq!(q.next(100), Next::Run("a"));
        q.finish("a", Ended::Done, 101);
        assert_eq!(q.next(200), Next::Idle);
        assert!(q.1.entries.is_empty() && q.1.cooling.is_empty(), "{:?}", q.1);
    }

    #[test]
    fn the_earliest_wish_wins() {
        let mut q = Clock::new();
        q.add("a", 500);
        q.add("a", 300);
        q.add("a", 400);
        assert_eq!(q.next(0), Next::At(q.at(300)));
        assert_eq!(q.next(300), Next::Run("a"));
        q.add("a", 9_000);
        q.finish("a", Ended::Requeue(Duration::from_secs(1)), 310);
        assert_eq!(q.next(310), Next::At(q.at(1_310)));
    }

    #[test]
    fn failures_back_off_whatever_is_added_and_success_resets() {
        let mut q = Clock::new();
        q.add("a", 0);
        assert_eq!(q.next(0), Next::Run("a"));
        q.finish("a", FAILED, 10);
        assert_eq!(q.next(10), Next::At(q.at(110)));
        assert_eq!(q.next(110), Next::Run("a"));
        q.add("a", 115);
        q.finish("a", FAILED, 120);
        q.add("a", 130);
        assert_eq!(q.next(130), Next::At(q.at(320)), "200 ms, not shortened");
        assert_eq!(q.next(320), Next::Run("a"));
        q.finish("a", Ended::Done, 330);
        q.add("a", 1_000);
        assert_eq!(q.next(1_000), Next::Run("a"));
        q.finish("a", FAILED, 1_010);
        assert_eq!(q.next(1_010), Next::At(q.at(1_110)), "from the beginning again");
    }

    #[test]
    fn one_failing_key_does_not_hold_up_another() {
        let mut q = Clock::new();
        q.add("bad", 0);
        assert_eq!(q.next(0), Next::Run("bad"));
        q.finish("bad", FAILED, 1);
        q.add("good", 2);
        assert_eq!(q.next(2), Next::Run("good"));
    }

    #[test]
    fn clear_forgets_what_waits_and_how_what_runs_will_end() {
        let mut q = Clock::new();
        for key in ["a", "b", "c"] {
            q.add(key, 0);
        }
        assert_eq!([q.next(0), q.next(0)], [Next::Run("a"), Next::Run("b")]);
        q.add("a", 1);
        q.1.clear();
        assert_eq!(q.1.waiting(), 0);
        q.add("b", 2); // Leader again already: this wish is new.
        q.finish("a", FAILED, 50);
        q.finish("b", FAILED, 50);
        assert_eq!(q.next(50), Next::At(q.at(100)));
        assert_eq!([q.next(100), q.next(100)], [Next::Run("b"), Next::Idle]);
    }
}
