//! Counts the connections that each rule allows.
//!
//! Owns the table [`usage`](crate::nft::usage) and the node's `NodeUsage`. Nothing here is on the way of a change of rules, and no
//! failure here is one of enforcement.
//!
//! What the kernel counted is added up here, and written down now and then. Before it is, another epoch begins: what is written
//! are whole epochs, with the number of the last, and whoever reads the kernel next goes on behind that one. So nothing is lost
//! and nothing counted twice, whenever the agent ends.

mod metrics;
mod tally;
mod world;
mod writer;

pub use metrics::Rows;

use super::Shared;
use super::committed::Committed;
use crate::api::NodeUsageSpec;
use crate::nft::exec::{Nft, NftError};
use crate::nft::monitor::{Monitor, Watch};
use crate::nft::opened::{self, Count, Opened};
use crate::nft::usage::{self as table, Epoch, Guarded, SIZE};
use crate::policy::Family;
use crate::runtime::streak::Streak;
use crate::runtime::{Shutdown, chain};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use world::Recent;
use writer::Done;
pub use writer::Writer;

/// How often the kernel is asked, …
const EVERY: Duration = Duration::from_secs(10);
/// … unless that would take more than one part in so many of a processor's time.
const RARELY: u32 = 50;
/// New guards are enforced first: their connections come later than this.
const MOMENT: Duration = Duration::from_millis(20);
/// Who left is remembered for a look. For so many that fail, and no longer, it is remembered for the next one.
const PATIENCE: u32 = 6;
/// Epochs that could not be written down yet, at most. Their sets are in the kernel, whose memory is everybody's.
const MAX_CLOSED: usize = 2;

/// Who is told what is enforced.
#[derive(Clone)]
pub struct Usage(mpsc::UnboundedSender<Arc<Committed>>);

impl Usage {
    /// Starts to count, as soon as something is enforced.
    pub fn start(
        nft: Nft,
        monitor: &Arc<Monitor>,
        state: Shared,
        writer: Writer,
        rows: Rows,
        shutdown: Shutdown,
    ) -> Self {
        let (told, worlds) = mpsc::unbounded_channel();
        // News are looked for often enough.
        let watch = monitor.watch(&[table::TABLE], || {});
        tokio::spawn(async move {
            tokio::select! {
                () = keep(nft, watch, state, writer, rows, worlds) => {}
                () = shutdown.signalled() => {}
            }
        });
        Self(told)
    }

    /// What is about to be enforced.
    pub fn about_to_commit(&self, committed: Arc<Committed>) {
        // It lives as long as the agent.
        let _ = self.0.send(committed);
    }
}

async fn keep(
    nft: Nft,
    watch: Watch,
    state: Shared,
    writer: Writer,
    rows: Rows,
    mut worlds: mpsc::UnboundedReceiver<Arc<Committed>>,
) {
    let Some(first) = worlds.recv().await else { return };
    let mut recent = Recent::default();
    recent.advance(first);
    let written = {
        let mut found = pin!(writer.find());
        loop {
            tokio::select! {
                found = &mut found => break found,
                Some(newer) = worlds.recv() => recent.advance(newer),
            }
        }
    };
    let (snapshots, mut done) = writer.start();
    let mut keeper = Keeper {
        nft,
        watch,
        tally: Tally::restore(written, Timestamp::now()),
        recent,
        guarded: Guarded::new(),
        open: None,
        closed: BTreeSet::new(),
        unwritten: None,
        snapshots,
    };
    let (mut next, mut streak, mut failures) = (Instant::now(), Streak::default(), 0);
    loop {
        let outcome = tokio::select! {
            world = worlds.recv() => {
                let Some(world) = world else { return };
                keeper.recent.advance(world);
                sleep(MOMENT).await;
                while let Ok(world) = worlds.try_recv() {
                    keeper.recent.advance(world);
                }
                keeper.guard_more().await
            }
            changed = done.changed() => {
                let written = done.borrow_and_update().clone();
                match (changed, written) {
                    (Ok(()), Some(Done::Written(spec))) => keeper.wrote(spec).await,
                    (Ok(()), Some(Done::Replaced)) => {
                        keeper.begin_anew();
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            () = sleep_until(next) => {
                let started = Instant::now();
                let outcome = keeper.look(&state).await;
                failures = if outcome.is_ok() { 0 } else { failures + 1 };
                if failures > PATIENCE && keeper.recent.forget() {
                    keeper.tally.missed(Timestamp::now());
                }
                rows.publish(&keeper.tally);
                next = Instant::now() + EVERY.max(started.elapsed() * RARELY);
                outcome
            }
        };
        match outcome {
            Ok(()) => drop(streak.recovered()),
            Err(error) => {
                // Whatever is in the kernel now, the next look starts from that.
                keeper.lost();
                if streak.failed(Instant::now()) {
                    tracing::warn!(error = chain(&error), "cannot count connections, will retry");
                }
            }
        }
    }
}

/// Why connections cannot be counted.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error("cannot read what the kernel counted: {0}")]
    Read(#[from] io::Error),
}

struct Keeper {
    nft: Nft,
    watch: Watch,
    tally: Tally,
    recent: Recent,
    /// What the kernel has for guarded.
    guarded: Guarded,
    /// The epoch that the kernel counts in; `None`: that is not known.
    open: Option<Epoch>,
    /// Epochs that are counted and not written down.
    closed: BTreeSet<Epoch>,
    /// The last epoch of what is being written.
    unwritten: Option<Epoch>,
    snapshots: watch::Sender<Option<NodeUsageSpec>>,
}

impl Keeper {
    /// From whatever is in the kernel: what was counted there goes on.
    async fn begin(&mut self) -> Result<Epoch, UsageError> {
        self.watch.take();
        let before = self.open.take();
        let present = match self.nft.outline(table::TABLE).await {
            Ok(listing) => table::epochs(&listing),
            // There is no such table.
            Err(NftError::Refused(_)) => BTreeSet::new(),
            Err(error) => return Err(error.into()),
        };
        let written = self.tally.written_epoch();
        let (forgotten, unwritten): (BTreeSet<Epoch>, BTreeSet<Epoch>) =
            present.iter().partition(|epoch| written.is_some_and(|written| **epoch <= written));
        // The epoch after the last that was written, at least, was counted in.
        let expected = before.is_none_or(|before| unwritten.contains(&before));
        if !expected || written.is_some() && unwritten.is_empty() {
            self.tally.missed(Timestamp::now());
        }
        let last = present.iter().chain(&written).chain(&before).max().copied().unwrap_or_default();
        // If it is for long that they cannot be read, there are enough of them.
        let again = unwritten.len() > MAX_CLOSED && unwritten.contains(&last) && !self.closed.contains(&last);
        let epoch = if again { last } else { last + 1 };
        let guarded = self.recent.now().guarded();
        self.commit(&table::start(epoch, &guarded, &forgotten)).await?;
        self.guarded = guarded;
        for over in unwritten.difference(&self.closed.clone()).filter(|over| **over != epoch) {
            self.close(*over).await?;
        }
        self.closed.retain(|epoch| unwritten.contains(epoch));
        self.open = Some(epoch);
        Ok(epoch)
    }

    /// Counts what is new, and writes it down if that is worth it.
    async fn look(&mut self, state: &Shared) -> Result<(), UsageError> {
        let committed = self.recent.now();
        let concerned = self.tally.concerned(committed);
        let existing = {
            let state = state.lock();
            let groups = concerned.into_iter().filter_map(|name| state.index.group(name));
            groups.map(|group| (group.name.clone(), (group.uid.clone(), group.rules.clone()))).collect()
        };
        self.tally.know(committed, existing, Timestamp::now());
        let news = self.watch.take();
        if news.foreign.is_some() {
            self.tally.missed(Timestamp::now());
        }
        let epoch = match self.open {
            Some(epoch) if news == Default::default() => epoch,
            _ => self.begin().await?,
        };
        let Some(size) = self.count(epoch).await? else {
            self.tally.missed(Timestamp::now());
            self.begin().await?;
            return Ok(());
        };
        self.recent.looked();
        self.guard(self.recent.now().guarded()).await?;
        let crowded = size > SIZE / 2 && self.closed.len() < MAX_CLOSED;
        let due = self.tally.is_due(Timestamp::now()) || self.closed.len() >= MAX_CLOSED;
        if crowded || due && self.unwritten.is_none() {
            self.turn(epoch).await?;
        }
        Ok(())
    }

    /// Another epoch begins, and what was counted until then is written down.
    async fn turn(&mut self, epoch: Epoch) -> Result<(), UsageError> {
        self.commit(&table::turn(epoch + 1)).await?;
        self.open = Some(epoch + 1);
        self.close(epoch).await?;
        self.unwritten = Some(epoch);
        self.snapshots.send_replace(Some(self.tally.spec(epoch, Timestamp::now())));
        Ok(())
    }

    /// Counts what an epoch tells that is over.
    async fn close(&mut self, epoch: Epoch) -> Result<(), UsageError> {
        if self.count(epoch).await?.is_none() {
            self.tally.missed(Timestamp::now());
        }
        self.closed.insert(epoch);
        Ok(())
    }

    /// Counts what is new in an epoch. Tells how full the fuller of its sets is; `None`: they are gone.
    async fn count(&mut self, epoch: Epoch) -> Result<Option<usize>, UsageError> {
        let read = tokio::task::spawn_blocking(move || opened::read(epoch));
        let Some(counted) = read.await.map_err(io::Error::other)?? else { return Ok(None) };
        let size = fuller(&counted);
        let now = Timestamp::now();
        if size >= SIZE {
            // Some may have found no room.
            self.tally.missed(now);
        }
        self.tally.count(epoch, &counted, &self.recent, now);
        Ok(Some(size))
    }

    /// Tells the kernel whose connections to count; not yet whose no longer, for which it would make whoever commits next wait.
    async fn guard_more(&mut self) -> Result<(), UsageError> {
        self.guard(&self.recent.now().guarded() | &self.guarded).await
    }

    async fn guard(&mut self, guarded: Guarded) -> Result<(), UsageError> {
        if self.open.is_none() || guarded == self.guarded {
            return Ok(());
        }
        self.commit(&table::guard(&self.guarded, &guarded)).await?;
        self.guarded = guarded;
        Ok(())
    }

    /// What was counted up to the end of an epoch is written down, and need not be in the kernel any more.
    async fn wrote(&mut self, spec: NodeUsageSpec) -> Result<(), UsageError> {
        self.tally.wrote(spec);
        let written = self.tally.written_epoch();
        if self.unwritten <= written {
            self.unwritten = None;
        }
        let over = |epoch: &Epoch| written.is_some_and(|written| *epoch <= written);
        let forgotten: BTreeSet<Epoch> = self.closed.iter().copied().filter(over).collect();
        if self.open.is_some() && !forgotten.is_empty() {
            self.commit(&table::forget(&forgotten)).await?;
            self.closed = &self.closed - &forgotten;
        }
        Ok(())
    }

    /// What was counted went with a node of this one's name.
    fn begin_anew(&mut self) {
        let last = self.open.iter().chain(&self.closed).chain(&self.unwritten).max().copied();
        let now = Timestamp::now();
        self.tally = Tally::begin_after(last.or(self.tally.written_epoch()).unwrap_or_default(), now);
        self.closed.clear();
        self.unwritten = None;
        self.lost();
    }

    /// What is in the kernel is not known.
    fn lost(&mut self) {
        self.guarded.clear();
        self.open = None;
    }

    async fn commit(&self, script: &str) -> Result<(), NftError> {
        let _own = self.watch.own();
        self.nft.commit(script).await
    }
}

fn fuller(counted: &[(Opened, Count)]) -> usize {
    let v4 = counted.iter().filter(|(opened, _)| Family::of(opened.source) == Family::V4).count();
    v4.max(counted.len() - v4)
}
