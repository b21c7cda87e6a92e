//! What integration tests share: namespaces to test in, packets to test with, and random policies.
//!
//! Each test program uses the modules it needs, under their names: `support::lab`, `support::table`, …
#![allow(dead_code, reason = "every test program compiles all of it and uses a part")]

pub mod agent;
pub mod lab;
pub mod packet;
pub mod random;
pub mod scenario;
pub mod table;
pub mod topology;
pub mod traffic;
pub mod wire;
