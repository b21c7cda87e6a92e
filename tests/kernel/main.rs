//! What the kernel does with packets is what the reference semantics say: random policies and connections, and the cases
//! worth a name, sent through the real table between network namespaces.
//!
//! Needs root, `nft` and `ip`. A failure of a random test prints how to repeat it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod bridges;
mod cache;
mod denied;
mod differential;
mod edits;
mod handover;
mod semantics;
mod usage;
