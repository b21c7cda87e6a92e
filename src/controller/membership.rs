//! Who belongs to a group or a binding, kept so that one target's change costs one target's work.
//!
//! PURE.

use crate::index::{AddressDigest, Index, TargetName};
use crate::policy::NamespacedName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The members of one group, or the targets of one binding.
#[derive(Debug, Default)]
pub struct Membership {
    targets: HashMap<TargetName, Record>,
    nodes: BTreeMap<String, OnNode>,
    /// The addresses that are published: beyond doubt their owners'.
    pub published: AddressDigest,
    /// How many targets have each: the pods of a machine that migrates may share one.
    holders: HashMap<IpAddr, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    node: Option<String>,
    /// Its uid and network, if that is a secondary one.
    attachment: Option<(String, NamespacedName)>,
    claimed: BTreeSet<IpAddr>,
    published: BTreeSet<IpAddr>,
}

/// The part of a membership that one node enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNode {
    targets: usize,
    /// The addresses that targets on the node claim: what its agent guards.
    pub claimed: AddressDigest,
}

/// What an update changed, beside the target itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The published addresses are others.
    pub addresses: bool,
    /// Other nodes are concerned.
    pub nodes: bool,
}

impl Membership {
    /// Takes in a target as the index has it; `belongs` says whether it is a member at all.
    pub fn update(&mut self, index: &Index, name: &TargetName, belongs: bool) -> Moved {
        let target = index.target(name).filter(|t| belongs && !t.host_network);
        let now = target.map(|t| Record {
            node: t.node.clone(),
            attachment: t.network.clone().map(|network| (t.uid.clone(), network)),
            claimed: t.claimed().clone(),
            published: index.addresses(t).collect(),
        });
        if self.targets.get(name) == now.as_ref() {
            return Moved::default();
        }
        let (digest, nodes) = (self.published, self.nodes.len());
        let before = self.targets.remove(name);
        let node_before = before.as_ref().and_then(|r| r.node.clone());
        let node_now = now.as_ref().and_then(|r| r.node.clone());
        if let Some(record) = before {
            self.count(&record, false);
        }
        if let Some(record) = now {
            self.count(&record, true);
            self.targets.insert(name.clone(), record);
        }
        Moved { addresses: digest != self.published, nodes: nodes != self.nodes.len() || node_before != node_now }
    }

    /// How many interfaces there are.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The nodes that host one.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// The part that a node enforces, if there is one.
    pub fn on_node(&self, node: &str) -> Option<&OnNode> {
        self.nodes.get(node)
    }

    fn count(&mut self, record: &Record, comes: bool) {
        for address in &record.published {
            let holders = self.holders.entry(*address).or_default();
            if comes {
                *holders += 1;
                if *holders == 1 {
                    self.published.add(*address);
                }
            } else {
                *holders = holders.saturating_sub(1);
                if *holders == 0 {
                    self.holders.remove(address);
                    self.published.remove(*address);
                }
            }
        }
        let Some(node) = &record.node else { return };
        let on_node = self.nodes.entry(node.clone()).or_default();
        on_node.targets = if comes { on_node.targets + 1 } else { on_node.targets.saturating_sub(1) };
        for address in &record.claimed {
            if comes { on_node.claimed.add(*address) } else { on_node.claimed.remove(*address) }
        }
        if let Some((uid, network)) = &record.attachment {
            let digest = &mut on_node.claimed;
            if comes { digest.add_attachment(uid, network) } else { digest.remove_attachment(uid, network) }
        }
        if on_node.targets == 0 {
            self.nodes.remove(node);
        }
    }
}
