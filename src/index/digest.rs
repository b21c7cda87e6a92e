//! Digests of address sets that two processes can compare without sending the addresses.

use crate::policy::NamespacedName;
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::IpAddr;

/// A sum over the addresses' hashes: free of order, and one address more or less is one addition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressDigest(u128);

impl AddressDigest {
    /// With one address more.
    pub fn add(&mut self, address: IpAddr) {
        self.0 = self.0.wrapping_add(hash(address));
    }

    /// With one attachment to a secondary network more: it counts though it has no address.
    pub fn add_attachment(&mut self, uid: &str, network: &NamespacedName) {
        self.0 = self.0.wrapping_add(hash_attachment(uid, network));
    }

    /// With one attachment to a secondary network less.
    pub fn remove_attachment(&mut self, uid: &str, network: &NamespacedName) {
        self.0 = self.0.wrapping_sub(hash_attachment(uid, network));
    }

    /// With one address less.
    pub fn remove(&mut self, address: IpAddr) {
        self.0 = self.0.wrapping_sub(hash(address));
    }
}

fn hash(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => first_half(&Sha256::digest(a.octets())),
        IpAddr::V6(a) => first_half(&Sha256::digest(a.octets())),
    }
}

fn hash_attachment(uid: &str, network: &NamespacedName) -> u128 {
    first_half(&Sha256::digest(format!("{uid} {network}")))
}

fn first_half(hash: &[u8]) -> u128 {
    hash.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

impl FromIterator<IpAddr> for AddressDigest {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut digest = Self::default();
        addresses.into_iter().for_each(|a| digest.add(a));
        digest
    }
}

impl fmt::Display for AddressDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
