//! What a keeper of a table has to know of it: its names, its transactions, and what it holds.
//!
//! PURE: three tables are kept, by the same means; what they are for is theirs.

use super::listing::Contents;

/// In the copy, for as long as it guards by itself: whoever finds it must not touch the copy before our table guards again.
pub const GUARDS: &str = "guards";

/// All that varies in a table of ours.
pub trait Layout {
    /// The table, as in scripts.
    const TABLE: &'static str;

    /// A copy of it, for as long as it takes to replace it. Who takes the product off a node takes off both.
    const STAND_IN: &'static str;

    /// One transaction from any state of the table, or none, to this one. For a table that nothing passes: see
    /// [`replacement`](Self::replacement).
    fn full(&self) -> String;

    /// The transactions from this state of the table to another.
    fn plan(&self, next: &Self) -> Plan;

    /// The transactions from any state of the table, or none, to this one, with one or the other in force at every instant.
    fn replacement(&self) -> Replacement;

    /// Two transactions, to be checked and never committed: the kernel would take the first if a copy stands in and guards by
    /// itself, and the second if none does.
    fn stand_in_guards() -> [String; 2] {
        let copy = Self::STAND_IN;
        [format!("delete counter {copy} {GUARDS}\n"), format!("add table {copy}\ncreate counter {copy} {GUARDS}\n")]
    }

    /// What the table holds, when it is about to become the next one.
    fn expected(&self, next: &Self) -> Contents<'_>;

    /// One transaction after which nothing is left of it.
    fn removal() -> String {
        // "add" first, as deleting what is not there would fail.
        [Self::TABLE, Self::STAND_IN].map(|table| format!("add table {table}\ndelete table {table}\n")).concat()
    }
}

/// The transactions of a change, in order. Without any, nothing is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Adds what nothing refers to yet.
    pub stage: Option<String>,
    /// Changes verdicts, all at once.
    pub switch: Option<String>,
    /// Changes none, and takes away what the switch could leave: to be run in a quiet moment, or with the next switch that is
    /// followed by one.
    pub settle: Option<String>,
}

impl Plan {
    /// Settles an earlier change in the same commit: no table is ever left with two of them.
    pub fn settle_first(&mut self, earlier: &str) {
        self.switch.get_or_insert_default().insert_str(0, earlier);
    }

    /// The scripts to run, one after the other.
    pub fn scripts(&self) -> impl Iterator<Item = &str> {
        [&self.stage, &self.switch, &self.settle].into_iter().flatten().map(String::as_str)
    }
}

/// The transactions that replace a table, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Make a copy stand in. To be left out if one already guards by itself, as when a replacement did not come to its end:
    /// this would open what only that copy still closes.
    pub cover: Vec<String>,
    /// Replace the table behind it, and take it away.
    pub replace: Vec<String>,
}

impl Replacement {
    /// The scripts to run, one after the other.
    pub fn scripts(&self) -> impl Iterator<Item = &str> {
        self.cover.iter().chain(&self.replace).map(String::as_str)
    }
}
