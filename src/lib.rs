//! Ringfence: cloud security groups for Kubernetes.
//!
//! Data flows from [`api`] objects through [`policy`] (their meaning) and [`index`] (who is in which group) to [`nft`] (the
//! kernel) on the one side, in the [`agent`], and to slices and status on the other, in the [`controller`].

pub mod agent;
pub mod api;
pub mod cli;
pub mod cni;
pub mod controller;
pub mod index;
mod kubevirt;
pub mod nft;
pub mod observe;
pub mod policy;
pub mod runtime;
pub mod uninstall;
pub mod verify;
