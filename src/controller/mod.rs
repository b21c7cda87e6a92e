//! x
pub mod lease;
