//! What the commands compute, apart from the terminal and the cluster.
//!
//! PURE: objects in, answers out. Who is selected is [`crate::index`]'s answer, what is allowed [`crate::policy`]'s.

pub mod classes;
pub mod describe;
pub mod edits;
pub mod ends;
pub mod findings;
pub mod inventory;
pub mod manifests;
pub mod naming;
pub mod reach;
pub mod region;
pub mod rows;
pub mod rule_flags;
pub mod selectors;
pub mod snapshot;
pub mod traffic;
pub mod verdicts;

#[cfg(test)]
mod tests;
