//! An agent's view of other nodes' members: the slices of the groups that its rules name.

use super::AddressDigest;
use super::objects::name_of;
use crate::api::SecurityGroupSlice;
use crate::policy::NamespacedName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// The addresses of groups, put together from slices.
#[derive(Debug, Default)]
pub struct RemoteMembers {
    groups: HashMap<NamespacedName, Shards>,
    nobody: Arc<BTreeSet<IpAddr>>,
}

#[derive(Debug, Default)]
struct Shards {
    slices: BTreeMap<String, Shard>,
    /// The addresses for one uid of the group, until a slice changes.
    merged: Option<(String, Arc<BTreeSet<IpAddr>>)>,
}

#[derive(Debug, PartialEq)]
struct Shard {
    group_uid: String,
    addresses: BTreeSet<IpAddr>,
}

impl RemoteMembers {
    /// Replaces all that is known of a group by a complete list.
    pub fn reset(&mut self, group: &NamespacedName, slices: Vec<SecurityGroupSlice>) {
        self.groups.insert(group.clone(), Shards::default());
        for slice in slices {
            self.apply(group, slice);
        }
    }

    /// Takes in a slice as it is now; tells whether that changed anything.
    pub fn apply(&mut self, group: &NamespacedName, slice: SecurityGroupSlice) -> bool {
        let spec = slice.spec;
        // The label chose the slice, but the spec is what it says of itself.
        if spec.group != group.name {
            return self.delete(group, &name_of(&slice.metadata).name);
        }
        let addresses = spec.members.into_iter().flat_map(|m| m.addresses).collect();
        let shard = Shard { group_uid: spec.group_uid, addresses };
        let shards = self.groups.entry(group.clone()).or_default();
        let name = name_of(&slice.metadata).name;
        if shards.slices.get(&name) == Some(&shard) {
            return false;
        }
        shards.slices.insert(name, shard);
        shards.merged = None;
        true
    }

    /// Forgets a slice; tells whether that changed anything.
    pub fn delete(&mut self, group: &NamespacedName, slice: &str) -> bool {
        let Some(shards) = self.groups.get_mut(group) else { return false };
        let known = shards.slices.remove(slice).is_some();
        if known {
            shards.merged = None;
        }
        known
    }

    /// Forgets a group that no rule names any more.
    pub fn forget(&mut self, group: &NamespacedName) {
        self.groups.remove(group);
    }

    /// Whether a complete list of the group's slices was seen.
    pub fn knows(&self, group: &NamespacedName) -> bool {
        self.groups.contains_key(group)
    }

    /// The addresses of the group that has this uid. Nobody, if there is no such group: slices may outlive it for a moment.
    pub fn addresses(&mut self, group: &NamespacedName, uid: Option<&str>) -> Arc<BTreeSet<IpAddr>> {
        let (Some(shards), Some(uid)) = (self.groups.get_mut(group), uid) else { return self.nobody.clone() };
        match &shards.merged {
            Some((of, addresses)) if of == uid => addresses.clone(),
            _ => {
                let ours = shards.slices.values().filter(|shard| shard.group_uid == uid);
                let addresses = Arc::new(ours.flat_map(|shard| shard.addresses.iter().copied()).collect());
                shards.merged = Some((uid.to_owned(), Arc::clone(&addresses)));
                addresses
            }
        }
    }
}

/// The digest of a whole set.
impl From<&BTreeSet<IpAddr>> for AddressDigest {
    fn from(addresses: &BTreeSet<IpAddr>) -> Self {
        addresses.iter().copied().collect()
    }
}
