//! The whole product on a real cluster: objects applied with kubectl, packets of real pods, the kernels of two nodes.
//!
//! Needs the cluster of `make cluster` with Ringfence installed (`make install`); `make test` brings its own. What must be
//! denied is asserted at once after `kubectl wait --for=condition=Enforced`, with no second try: that is what the condition
//! promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod advice;
mod bad_input;
mod cluster;
mod deletion;
mod disruption;
mod drops;
mod edits;
mod extra_addresses;
mod gate;
mod guests;
mod kubevirt;
mod lifecycle;
mod machines;
mod members;
mod metrics;
mod moves;
mod networks;
mod pairs;
mod plugin;
mod privileges;
#[allow(dead_code, reason = "some tests have several seeds")]
#[path = "../support/random.rs"]
mod random;
mod reach;
mod repair;
mod rule_sets;
mod semantics;
mod traffic;
mod usage;
