//! Follows the kernel's counters of what it dropped into the metrics.
//!
//! The counters begin anew whenever a table is replaced: what is added is the difference, or all of a count that went back.

use super::metrics::{Dropped, Metrics};
use crate::nft::TABLE;
use crate::nft::exec::{Nft, NftError};
use crate::nft::own;
use crate::nft::skeleton::{DENIED_EGRESS, DENIED_INGRESS, NO_TUPLE};
use crate::runtime::{Shutdown, chain};
use std::collections::BTreeMap;
use std::time::Duration;

/// About as often as they are scraped.
const EVERY: Duration = Duration::from_secs(15);

/// Follows both tables' counters until shutdown.
pub async fn follow(nft: Nft, metrics: Metrics, shutdown: Shutdown) {
    let (mut guards, mut own_addresses) = (Counts::default(), Counts::default());
    let follow = async {
        loop {
            tokio::time::sleep(EVERY).await;
            for (counter, packets) in guards.advance(counters(&nft, TABLE).await) {
                match counter.as_str() {
                    DENIED_INGRESS => metrics.dropped(Dropped::ingress, packets),
                    DENIED_EGRESS => metrics.dropped(Dropped::egress, packets),
                    NO_TUPLE => metrics.dropped(Dropped::none, packets),
                    _ => {}
                }
            }
            let spoofed = own_addresses.advance(counters(&nft, own::TABLE).await);
            metrics.spoofed(spoofed.values().sum());
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.signalled() => {}
    }
}

/// A table's counters; none, if they cannot be read.
async fn counters(nft: &Nft, table: &str) -> BTreeMap<String, u64> {
    match nft.counters(table).await {
        Ok(counters) => counters,
        // A table that is not there has dropped nothing.
        Err(NftError::Refused(_)) => BTreeMap::new(),
        Err(error) => {
            tracing::warn!(table, error = chain(&error), "cannot read what was dropped; the next look makes up for it");
            BTreeMap::new()
        }
    }
}

/// What was counted when last looked at.
#[derive(Default)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// What came since then.
    fn advance(&mut self, now: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let since = |(name, count): (&String, &u64)| {
            let before = self.0.get(name).copied().filter(|before| before <= count).unwrap_or_default();
            (name.clone(), count - before)
        };
        let added = now.iter().map(since).collect();
        if !now.is_empty() {
            self.0 = now;
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_went_back_began_anew() {
        let mut counts = Counts::default();
        let one = |count| BTreeMap::from([("a".to_owned(), count)]);
        assert_eq!(counts.advance(one(5)), one(5));
        assert_eq!(counts.advance(one(7)), one(2));
        assert_eq!(counts.advance(BTreeMap::new()), BTreeMap::new(), "it could not be listed");
        assert_eq!(counts.advance(one(9)), one(2));
        assert_eq!(counts.advance(one(3)), one(3));
    }
}
