//! From parsed groups to the kernel: compile, compare, render; run `nft`, and hear what becomes of the tables.
//!
//! Everything but [`exec`], [`monitor`], [`denied`] and [`opened`] is PURE. The layout, in short: every packet of a connection is judged by the connection's own
//! tuple, so a verdict that changes, changes for both directions at once, and conntrack is never touched.
//!
//! - Profiles, port maps and CIDR sets are constants: named by a hash of what they say, shared, never edited in place.
//! - What changes in place is data: the address sets of groups, and the maps from guarded addresses to profiles.
//! - What both directions accepted is remembered, and forgotten with the next commit that may take something away.

pub mod bridge;
pub mod compile;
pub mod conntrack;
pub mod denied;
pub mod exec;
mod expected;
pub mod layout;
pub mod ledger;
pub mod listing;
pub mod model;
pub mod monitor;
pub mod nflog;
pub mod notification;
pub mod opened;
pub mod own;
mod question;
pub mod render;
mod segments;
pub mod skeleton;
pub mod usage;

pub use compile::{Profile, compile};
pub use layout::{Layout, Plan, Replacement};
pub use model::{Constant, Guard, Name, Ruleset, View};
pub use render::{full, plan, replacement};

/// The one table that is ours: nothing outside it is ever read or written.
pub const TABLE: &str = "inet ringfence";

/// A copy of it, for as long as it takes to replace it. Who takes the product off a node takes off both.
pub const STAND_IN: &str = "inet ringfence_stand_in";
