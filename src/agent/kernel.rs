//! A table of ours in the kernel: brings it to what is desired, whatever became of it, and notices when it is not what it was.
//!
//! Owns: what is known of the table, and the order of transactions. Must not: know what is in it, of objects, or when to run.

use crate::nft::exec::{Nft, NftError};
use crate::nft::listing::{Fingerprints, difference};
use crate::nft::monitor::{Monitor, Watch, generation};
use crate::nft::notification::Process;
use crate::nft::{Layout, Plan, Replacement};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// When someone fights us, a replacement costs some tens of milliseconds on one core: so many come at once, …
const REPAIRS_AT_ONCE: u32 = 10;
/// … and then one each so often: the node is open for no longer than this, and has time for its pods.
const REPAIR_EVERY: Duration = Duration::from_millis(200);

/// The next change, which often follows at once, comes before what can wait.
const SETTLE_AFTER: Duration = Duration::from_millis(50);

/// See the module. The only one who commits to the table.
pub struct Kernel<L> {
    nft: Nft,
    watch: Watch,
    /// Asks for a round of [`enforce`](Self::enforce).
    wake: Arc<dyn Fn() + Send + Sync>,
    /// What the table holds; `None` if that is not known, as at the start and after any failure.
    committed: Option<L>,
    /// What is still to be run of the last change.
    unsettled: Option<Unsettled>,
    fingerprints: Fingerprints,
    /// The generation in which the table was last found to be what was committed.
    compared: Option<u32>,
    /// Why the table is to be replaced, until it is.
    damage: Option<Damage>,
    pace: Pace,
}

struct Unsettled {
    script: String,
    since: Instant,
}

/// How one of our tables came to be not what was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Someone changed it.
    Foreign {
        /// The table.
        table: &'static str,
        /// Who did.
        process: Process,
    },
    /// It was compared, and is not the same.
    Different {
        /// The table.
        table: &'static str,
        /// In what.
        what: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Foreign { table, process } => format!("{process} changed table {table}"),
            Self::Different { table, what } => format!("table {table} is not what was committed: {what}"),
        })
    }
}

impl<L: Layout> Kernel<L> {
    /// Knows nothing yet: its first commit is of the table as a whole. `wake` is called when the table may have to be
    /// repaired or settled, which the next [`enforce`](Self::enforce) does.
    pub fn new(nft: Nft, monitor: &Arc<Monitor>, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(wake);
        let damaged = wake.clone();
        Self {
            nft,
            watch: monitor.watch(&[L::TABLE, L::STAND_IN], move || damaged()),
            wake,
            committed: None,
            unsettled: None,
            fingerprints: Fingerprints::default(),
            compared: None,
            damage: None,
            pace: Pace::default(),
        }
    }

    /// Brings the table to this. What is enforced before stays until then, whatever fails on the way.
    ///
    /// If the table had been damaged it is whole again, and it is told by what. With `compare`, damage is looked for.
    pub async fn enforce(&mut self, desired: L, compare: bool) -> Result<Option<Damage>, NftError> {
        let news = self.watch.take();
        if let Some(committed) = self.committed.take() {
            let damage = match news.foreign {
                Some(process) => Some(Damage::Foreign { table: L::TABLE, process }),
                None if news.lost || compare => {
                    self.settle().await?;
                    let different = self.compare(&committed, &desired).await?;
                    different.map(|what| Damage::Different { table: L::TABLE, what })
                }
                None => None,
            };
            if damage.is_none() {
                self.change(committed.plan(&desired)).await?;
                self.committed = Some(desired);
                return Ok(None);
            }
            self.damage = damage;
        }
        if self.damage.is_some() {
            self.pace.wait().await;
            // Whatever was done until now is undone with the rest.
            self.watch.take();
        }
        self.replace(&desired).await?;
        self.committed = Some(desired);
        Ok(self.damage.take())
    }

    /// Takes the table away. That it is gone is not remembered: the next commit, of whatever, starts from nothing.
    pub async fn remove(&mut self) -> Result<(), NftError> {
        self.committed = None;
        self.unsettled = None;
        self.watch.take();
        // Of a table that is not there the kernel may not even know the family.
        if self.nft.exist([L::TABLE, L::STAND_IN]).await? == [false, false] {
            return Ok(());
        }
        self.commit(&L::removal()).await
    }

    /// What the kernel says against something desired, if it says anything; of failures other than its "no" nothing is known.
    pub async fn refuses(&self, desired: &L) -> Option<String> {
        match self.nft.check(&desired.full()).await {
            Err(NftError::Refused(message)) => Some(message),
            _ => None,
        }
    }

    /// What the table holds that it should not, or the other way round, before it becomes what is desired.
    async fn compare(&mut self, committed: &L, desired: &L) -> Result<Option<String>, NftError> {
        // Read before the table is: what happens in between is compared next time.
        let now = generation()?;
        if self.compared == Some(now) {
            return Ok(None);
        }
        let difference = match self.nft.list(L::TABLE).await {
            Ok(listing) => difference(&listing, &committed.expected(desired), &mut self.fingerprints),
            Err(NftError::Refused(message)) => Some(message),
            Err(error) => return Err(error),
        };
        self.compared = difference.is_none().then_some(now);
        Ok(difference)
    }

    async fn change(&mut self, mut plan: Plan) -> Result<(), NftError> {
        if plan.settle.is_some()
            && let Some(before) = self.unsettled.take()
        {
            plan.settle_first(&before.script);
        }
        let Plan { stage, switch, settle } = plan;
        for script in stage.iter().chain(&switch) {
            self.commit(script).await?;
        }
        if let Some(script) = settle {
            self.unsettled = Some(Unsettled { script, since: Instant::now() });
            let wake = self.wake.clone();
            tokio::spawn(async move {
                sleep(SETTLE_AFTER).await;
                wake();
            });
        }
        if self.unsettled.as_ref().is_some_and(|unsettled| unsettled.since.elapsed() >= SETTLE_AFTER) {
            self.settle().await?;
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), NftError> {
        match self.unsettled.take() {
            Some(unsettled) => self.commit(&unsettled.script).await,
            None => Ok(()),
        }
    }

    /// From any state of the table, or none. Whichever step fails, what guards then goes on to, and is not touched before
    /// something else does.
    async fn replace(&mut self, desired: &L) -> Result<(), NftError> {
        self.fingerprints = Fingerprints::default();
        self.compared = None;
        self.unsettled = None;
        let [ours, stand_in] = self.nft.exist([L::TABLE, L::STAND_IN]).await?;
        if !ours && !stand_in {
            // Nothing meets it: the node is open now, so the quickest way is the best.
            return self.commit(&desired.full()).await;
        }
        let Replacement { cover, replace } = desired.replacement();
        if stand_in && self.stand_in_guards().await? {
            // What the kernel would refuse later, it refuses here, before anything is touched.
            self.nft.check(&desired.full()).await?;
        } else {
            // And here: the first of these has all that is desired, and takes nothing away from what guards.
            for script in &cover {
                self.commit(script).await?;
            }
        }
        for script in &replace {
            self.commit(script).await?;
        }
        Ok(())
    }

    /// Whether an earlier replacement left a copy that guards, perhaps as the only one. Both answers are the kernel's: no
    /// failure is taken for either.
    async fn stand_in_guards(&self) -> Result<bool, NftError> {
        let [yes, no] = L::stand_in_guards();
        match self.nft.check(&yes).await {
            Ok(()) => Ok(true),
            Err(NftError::Refused(_)) => self.nft.check(&no).await.map(|()| false),
            Err(error) => Err(error),
        }
    }

    async fn commit(&self, script: &str) -> Result<(), NftError> {
        let _own = self.watch.own();
        self.nft.commit(script).await
    }
}

/// Some at once, then one each so often.
#[derive(Default)]
struct Pace {
    /// When the last one would have been, had each waited for its turn.
    last: Option<Instant>,
}

impl Pace {
    async fn wait(&mut self) {
        let now = Instant::now();
        let turn = self.last.map_or(now, |last| now.max(last + REPAIR_EVERY));
        self.last = Some(turn);
        let ahead = turn.saturating_duration_since(now);
        sleep(ahead.saturating_sub(REPAIR_EVERY * (REPAIRS_AT_ONCE - 1))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_a_fight_repairs_slow_down_and_never_stop() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..13 {
            pace.wait().await;
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times[..10], [0; 10]);
        assert_eq!(times[10..], [200, 400, 600]);
        // After a while of peace they are quick again.
        sleep(Duration::from_secs(2)).await;
        let later = Instant::now();
        pace.wait().await;
        assert_eq!(later.elapsed(), Duration::ZERO);
    }
}
