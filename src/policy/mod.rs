//! The meaning of security groups: API objects parsed into a model that cannot be wrong, and the reference verdict over it.
//!
//! PURE: no I/O, no clock, no client. After [`parse_group`] nothing reads the raw object again. [`evaluate`] is the
//! semantics in the plainest form; the kernel layout of [`crate::nft`] is tested against it.

mod cidr;
pub mod describe;
mod evaluate;
mod nearest;
mod parse;
mod ports;
mod rule;

pub use cidr::{CidrError, CidrSet, Family, parse_cidr};
pub use evaluate::{Connection, Decision, Interface, L4, Policy, Verdict, World, carries};
pub use nearest::{Miss, Nearest, nearest};
pub use parse::{FieldError, parse_group, parse_rule};
pub use ports::{PortError, PortSet};
pub use rule::{Direction, Group, IcmpMatch, IcmpType, NamespacedName, Remote, Rule, RuleId, Traffic, Transport};
