//! Our table in the kernel: brings it to what is desired, whatever became of it.
//!
//! Owns: what is known of the table, and the order of transactions. Must not: know of objects, or when to run.

use crate::nft::exec::{Nft, NftError};
use crate::nft::{Ruleset, STAND_IN, TABLE, full, plan, replacement, stand_in_guards};

/// See the module.
pub struct Kernel {
    nft: Nft,
    /// What the table holds; `None` if that is not known, as at the start and after any failure.
    committed: Option<Ruleset>,
}

impl Kernel {
    /// Knows nothing yet: its first commit is of the table as a whole.
    pub fn new(nft: Nft) -> Self {
        Self { nft, committed: None }
    }

    /// Whether the table is known to hold what was last enforced.
    pub fn is_known(&self) -> bool {
        self.committed.is_some()
    }

    /// Brings the table to this. What is enforced before stays until then, whatever fails on the way.
    pub async fn enforce(&mut self, ruleset: Ruleset) -> Result<(), NftError> {
        // Until all of it is done, nothing is known.
        match self.committed.take() {
            Some(committed) => {
                for script in plan(&committed, &ruleset).scripts() {
                    self.commit(script).await?;
                }
            }
            None => self.replace(&ruleset).await?,
        }
        self.committed = Some(ruleset);
        Ok(())
    }

    /// What the kernel says against a ruleset, if it says anything; of failures other than its "no" nothing is known.
    pub async fn refuses(&self, ruleset: &Ruleset) -> Option<String> {
        match self.nft.check(&full(ruleset)).await {
            Err(NftError::Refused(message)) => Some(message),
            _ => None,
        }
    }

    /// From any state of our table, or none. Whichever step fails, what guards then goes on to, and is not touched before
    /// something else does.
    async fn replace(&self, ruleset: &Ruleset) -> Result<(), NftError> {
        let [ours, stand_in] = self.nft.exist([TABLE, STAND_IN]).await?;
        if !ours && !stand_in {
            // No packet meets it: the node is open now, so the quickest way is the best.
            return self.commit(&full(ruleset)).await;
        }
        // Before anything is touched.
        self.nft.check(&full(ruleset)).await?;
        let replacement = replacement(ruleset);
        if !(stand_in && self.stand_in_guards().await?) {
            for script in &replacement.cover {
                self.commit(script).await?;
            }
        }
        for script in &replacement.replace {
            self.commit(script).await?;
        }
        Ok(())
    }

    /// Whether an earlier replacement left a copy that guards, perhaps as the only one. Both answers are the kernel's: no
    /// failure is taken for either.
    async fn stand_in_guards(&self) -> Result<bool, NftError> {
        let [yes, no] = stand_in_guards();
        match self.nft.check(&yes).await {
            Ok(()) => Ok(true),
            Err(NftError::Refused(_)) => self.nft.check(&no).await.map(|()| false),
            Err(error) => Err(error),
        }
    }

    async fn commit(&self, script: &str) -> Result<(), NftError> {
        self.nft.commit(script).await
    }
}
