//! Distributes the members of a group over slices, so that one member's change rewrites one slice.
//!
//! PURE. A member stays in its slice; slices of a former leader are taken over as they are.

use crate::api::SliceMember;
use crate::policy::NamespacedName;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A slice of this many members is about 30 KB: small enough to send often, large enough to need few.
pub const MAX_MEMBERS: usize = 250;

/// What a slice should say.
pub type Members = BTreeMap<String, SliceMember>;

/// The slices that a group should have.
#[derive(Debug)]
pub struct Shards {
    group: NamespacedName,
    uid: String,
    slices: BTreeMap<String, Members>,
    home: HashMap<String, String>,
    /// The slices that have room.
    open: BTreeSet<String>,
}

impl Shards {
    /// The shards of a group with nobody in it.
    pub fn new(group: NamespacedName, uid: String) -> Self {
        Self { group, uid, slices: BTreeMap::new(), home: HashMap::new(), open: BTreeSet::new() }
    }

    /// The uid of the group these are the shards of.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Puts a member where a slice that exists already has it, so that taking over writes nothing.
    pub fn adopt(&mut self, slice: &str, member: SliceMember) {
        if !self.home.contains_key(&member.target) && self.slices.get(slice).is_none_or(|m| m.len() < MAX_MEMBERS) {
            self.insert(slice.to_owned(), member);
        }
    }

    /// A member as it is now, `None` if it is none; returns the slice that changed.
    pub fn set(&mut self, target: &str, member: Option<SliceMember>) -> Option<String> {
        let Some(member) = member else {
            let slice = self.home.remove(target)?;
            let members = self.slices.get_mut(&slice)?;
            members.remove(target);
            if members.is_empty() {
                self.slices.remove(&slice);
                self.open.remove(&slice);
            } else {
                self.open.insert(slice.clone());
            }
            return Some(slice);
        };
        let slice = match self.home.get(target) {
            Some(slice) if self.slices.get(slice).and_then(|s| s.get(target)) == Some(&member) => return None,
            Some(slice) => slice.clone(),
            None => self.open.first().cloned().unwrap_or_else(|| self.new_name()),
        };
        self.insert(slice.clone(), member);
        Some(slice)
    }

    /// What a slice should say; `None`: it should not be.
    pub fn slice(&self, name: &str) -> Option<&Members> {
        self.slices.get(name)
    }

    /// Everyone who is in a slice.
    pub fn targets(&self) -> impl Iterator<Item = &String> {
        self.home.keys()
    }

    /// The names of all slices that should be.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.slices.keys()
    }

    fn insert(&mut self, slice: String, member: SliceMember) {
        self.home.insert(member.target.clone(), slice.clone());
        let members = self.slices.entry(slice.clone()).or_default();
        members.insert(member.target.clone(), member);
        if members.len() < MAX_MEMBERS {
            self.open.insert(slice);
        } else {
            self.open.remove(&slice);
        }
    }

    /// A name that no slice of this group has. The uid keeps a new group of an old name out of the old one's slices.
    fn new_name(&self) -> String {
        let mut n = 0_u64;
        loop {
            let hash = Sha256::digest(format!("{}/{n}", self.uid));
            let suffix: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
            let name = format!("{}-{suffix}", self.group.name);
            if !self.slices.contains_key(&name) {
                return name;
            }
            n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards() -> Shards {
        Shards::new(NamespacedName::new("shop", "web"), "u1".into())
    }

    fn member(n: usize) -> SliceMember {
        SliceMember { target: format!("pod/p{n}"), addresses: vec![], node: Some("n1".into()) }
    }

    #[test]
    fn one_change_touches_one_slice_and_members_stay() {
        let mut shards = shards();
        for n in 0..600 {
            shards.set(&member(n).target, Some(member(n))).unwrap();
        }
        let sizes: Vec<usize> = shards.slices.values().map(BTreeMap::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 600);
        assert!(sizes.len() == 3 && sizes.iter().all(|s| *s <= MAX_MEMBERS));
        assert_eq!(shards.set("pod/p7", Some(member(7))), None, "nothing changed");
        let home = shards.home["pod/p7"].clone();
        let moved = SliceMember { node: Some("n2".into()), ..member(7) };
        assert_eq!(shards.set("pod/p7", Some(moved)), Some(home.clone()));
        assert_eq!(shards.set("pod/p7", None), Some(home));
        assert_eq!(shards.set("pod/p7", None), None);
    }

    #[test]
    fn an_empty_slice_goes_and_a_new_group_gets_other_names() {
        let mut shards = shards();
        let slice = shards.set("pod/p1", Some(member(1))).unwrap();
        assert_eq!(shards.set("pod/p1", None), Some(slice.clone()));
        assert_eq!(shards.slice(&slice), None);
        let other = Shards::new(NamespacedName::new("shop", "web"), "u2".into()).set("pod/p1", Some(member(1)));
        assert_ne!(other, Some(slice));
    }

    #[test]
    fn taking_over_changes_nothing() {
        let mut shards = shards();
        for n in 0..3 {
            shards.adopt(&format!("web-old{n}"), member(n));
        }
        for n in 0..3 {
            assert_eq!(shards.set(&member(n).target, Some(member(n))), None);
        }
        assert_eq!(shards.names().count(), 3);
    }
}
