//! How a pod is attached to this node's network. PURE.

use crate::policy::NamespacedName;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// One interface of a pod, as the runtime made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The pod.
    pub pod: NamespacedName,
    /// The pod's uid: a name may be used again.
    pub uid: String,
    /// The sandbox.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// The device on the node's side, where there is one.
    pub device: Option<String>,
    /// The MAC address on the pod's side.
    pub mac: Option<String>,
    /// The pod's addresses on this interface.
    pub addresses: BTreeSet<IpAddr>,
}
