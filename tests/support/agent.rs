//! An agent with everything but the API server: the loop around one of its tables, over the real kernel and the real nft.

use super::lab::Netns;
use ringfence::agent::kernel::{Damage, Kernel};
use ringfence::nft::Layout;
use ringfence::nft::exec::{Nft, NftError};
use ringfence::nft::monitor::Monitor;
use ringfence::runtime::{Backoff, Coalescer, Reason, Shutdown, Trigger};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What must come, comes within this on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Of quiet commits there is nothing to compare.
const NEVER: Duration = Duration::from_secs(3600);

/// How an agent is set up.
pub struct Setup<'a> {
    /// The program.
    pub nft: Nft,
    /// How often to compare.
    pub compare_every: Duration,
    /// Opens the socket that hears of changes.
    pub monitor: Box<dyn Fn() -> Arc<Monitor> + Send + 'a>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { nft: Nft::default(), compare_every: NEVER, monitor: Box::new(|| Monitor::open().unwrap()) }
    }
}

impl<'a> Setup<'a> {
    /// One that hears nothing, as its socket is of another namespace, and so has to compare.
    pub fn deaf(elsewhere: &'a Netns) -> Self {
        let monitor = || {
            let runtime = tokio::runtime::Handle::current();
            elsewhere.enter(|| {
                let _context = runtime.enter();
                Monitor::open().unwrap()
            })
        };
        Self { monitor: Box::new(monitor), compare_every: Duration::from_millis(100), ..Self::default() }
    }
}

/// The agent's loop around a table, as it runs in the product, with what is desired in place of an API server.
pub struct Agent<L> {
    /// What it is to make of the table.
    pub desired: Mutex<L>,
    dirty: Arc<Coalescer>,
    /// What it has done.
    pub rounds: Mutex<Vec<Round>>,
    another: Condvar,
    /// How many rounds have begun.
    begun: AtomicUsize,
}

/// One run of the loop.
pub struct Round {
    /// When it ended.
    pub at: Instant,
    /// How.
    pub outcome: Result<Option<Damage>, NftError>,
}

impl<L: Layout + Clone + Send> Agent<L> {
    /// Runs an agent on a node until the test is done with it, and waits for its first commit if there is to be one.
    pub fn on<R>(node: &Netns, setup: Setup<'_>, desired: &L, test: impl FnOnce(&Self) -> R) -> R {
        /// Ends the agent also when the test fails.
        struct Stop(Trigger);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.shut_down();
            }
        }

        let retry = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };
        let agent = Self {
            desired: Mutex::new(desired.clone()),
            dirty: Arc::new(Coalescer::new(retry, Some(setup.compare_every))),
            rounds: Mutex::default(),
            another: Condvar::new(),
            begun: AtomicUsize::new(0),
        };
        let (trigger, shutdown) = Shutdown::manual();
        std::thread::scope(|scope| {
            scope.spawn(|| node.enter(|| agent.run(setup, shutdown)));
            let _stop = Stop(trigger);
            agent.until("its first round", |rounds| !rounds.is_empty());
            test(&agent)
        })
    }

    fn run(&self, setup: Setup<'_>, shutdown: Shutdown) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let monitor = (setup.monitor)();
            let dirty = self.dirty.clone();
            let mut kernel = Kernel::new(setup.nft, &monitor, move || dirty.notify());
            self.dirty.notify();
            let enforce = self.dirty.clone().run(shutdown, async |reason| {
                self.begun.fetch_add(1, SeqCst);
                let desired = self.desired.lock().unwrap().clone();
                let outcome = kernel.enforce(desired, reason == Reason::Periodic).await;
                let failed = outcome.as_ref().err().map(ToString::to_string);
                self.rounds.lock().unwrap().push(Round { at: Instant::now(), outcome });
                self.another.notify_all();
                failed.map_or(Ok(()), Err)
            });
            tokio::select! {
                () = enforce => {}
                error = monitor.run() => panic!("{error:?}"),
            }
        });
    }

    /// Waits until its rounds are so.
    pub fn until(&self, what: &str, mut so: impl FnMut(&[Round]) -> bool) {
        let rounds = self.rounds.lock().unwrap();
        let (rounds, waited) = self.another.wait_timeout_while(rounds, PATIENCE, |rounds| !so(rounds)).unwrap();
        let outcomes: Vec<_> = rounds.iter().rev().take(5).map(|round| &round.outcome).collect();
        assert!(!waited.timed_out(), "not within {PATIENCE:?}: {what}; {} rounds, the last {outcomes:?}", rounds.len());
    }

    /// Changes what is desired, and waits for a round to say so.
    pub fn desire(&self, desired: &L, what: &str, so: impl Fn(&Round) -> bool) {
        // A round that has begun may have begun with the old one: so the last one counts.
        desired.clone_into(&mut self.desired.lock().unwrap());
        let before = self.rounds().0;
        self.dirty.notify();
        self.until(what, |rounds| rounds.len() > before && rounds.last().is_some_and(&so));
    }

    /// Does something while the agent is busy, and listens to nothing.
    pub fn meanwhile(&self, work: impl FnOnce()) {
        let desired = self.desired.lock().unwrap();
        self.dirty.notify();
        let deadline = Instant::now() + PATIENCE;
        // One may have begun before.
        while self.begun.load(SeqCst) == self.rounds.lock().unwrap().len() {
            assert!(Instant::now() < deadline, "no round begins");
            std::thread::sleep(Duration::from_millis(1));
        }
        work();
        drop(desired);
    }

    /// How many rounds there were, and the damage that was repaired in them.
    pub fn rounds(&self) -> (usize, Vec<(Instant, Damage)>) {
        let rounds = self.rounds.lock().unwrap();
        let damage = rounds.iter().filter_map(|r| Some((r.at, r.outcome.as_ref().ok()?.clone()?)));
        (rounds.len(), damage.collect())
    }

    /// Waits for the next repair after as many.
    pub fn repaired(&self, before: usize) -> (Instant, Damage) {
        let mut found = None;
        self.until("a repair", |rounds| {
            let damage = rounds.iter().filter_map(|r| Some((r.at, r.outcome.as_ref().ok()?.clone()?)));
            found = damage.skip(before).last();
            found.is_some()
        });
        found.unwrap()
    }
}

/// Done, with or without a repair.
pub fn done(round: &Round) -> bool {
    round.outcome.is_ok()
}

/// A program in place of nft, which does what the test says.
pub struct Wrapper(PathBuf);

impl Wrapper {
    /// One that does well.
    pub fn new(role: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("rftest-{}-{role}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let wrapper = Self(folder);
        wrapper.say("well");
        wrapper.put();
        wrapper
    }

    /// Puts it in its place. Commits are those with no more than `-f -`; the n-th one and all after it go as said.
    pub fn put(&self) {
        let folder = self.0.display();
        let script = format!(
            "#!/bin/sh\n\
             read -r mode from < {folder}/mode\n\
             [ \"$1\" = -f ] || exec nft \"$@\"\n\
             count=$(($(cat {folder}/count) + 1))\n\
             echo $count > {folder}/count\n\
             [ $count -ge \"$from\" ] || exec nft \"$@\"\n\
             case $mode in\n\
             hang) exec sleep 600 ;;\n\
             fail) exit 1 ;;\n\
             die) nft \"$@\"; kill -KILL $$ ;;\n\
             esac\n\
             exec nft \"$@\"\n"
        );
        // Not written in place: somebody may just be starting it.
        let new = self.0.join("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(new, self.program()).unwrap();
    }

    fn program(&self) -> PathBuf {
        self.0.join("nft")
    }

    /// An agent that runs it.
    pub fn setup(&self) -> Setup<'static> {
        Setup { nft: Nft::new(self.program()), ..Setup::default() }
    }

    /// From now on it does so.
    pub fn say(&self, mode: &str) {
        self.say_from(mode, 1);
    }

    /// It does well until the n-th commit from now, and so from then on.
    pub fn say_from(&self, mode: &str, n: usize) {
        fs::write(self.0.join("count"), "0\n").unwrap();
        let new = self.0.join("new-mode");
        fs::write(&new, format!("{mode} {n}\n")).unwrap();
        fs::rename(new, self.0.join("mode")).unwrap();
    }

    /// Nobody finds it any more.
    pub fn take_away(&self) {
        fs::remove_file(self.program()).unwrap();
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
