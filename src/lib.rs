//! Ringfence: cloud security groups for Kubernetes. See the README for what it does and how data flows.

pub mod api;
pub mod index;
pub mod nft;
pub mod policy;
