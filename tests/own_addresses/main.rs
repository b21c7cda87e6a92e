//! Nobody behind a device sends with what is not its own (S9): real frames between network namespaces, routed and bridged.
//!
//! A witness listens at each pod's device, right behind our table: it counts what the table let through. Every attack is first
//! seen to reach the witness without the table, or the test would prove nothing.
//!
//! Needs root, `nft` and `ip`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod own;
mod scene;
mod spoofing;
