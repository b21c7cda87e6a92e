//! What Ringfence knows of KubeVirt: which pod runs which virtual machine, and the labels of machines.
//!
//! KubeVirt need not be installed. A machine's network is that of the pod that runs it, its launcher, so to groups the pod is
//! the interface, and the machine a second set of labels of it. What a guest says of itself is never believed.
//!
//! The names are those of KubeVirt's published API: `staging/src/kubevirt.io/api/core/v1/types.go` in its repository.

mod follow;

pub use follow::follow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// The API group of KubeVirt.
const API_GROUP: &str = "kubevirt.io";
/// On a machine: the node on which it runs. KubeVirt keeps people from writing it, and its own agents find machines by it.
const NODE_NAME: &str = "kubevirt.io/nodeName";
/// On a machine that is being migrated: the node to which it goes.
const MIGRATION_TARGET_NODE_NAME: &str = "kubevirt.io/migrationTargetNodeName";

/// A running virtual machine; nothing but its metadata is read.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize)]
#[kube(group = "kubevirt.io", version = "v1", kind = "VirtualMachineInstance", namespaced, schema = "disabled")]
pub struct VirtualMachineInstanceSpec {}

/// The uid of the machine that a pod runs, if it is a launcher.
pub fn machine_of(pod: &ObjectMeta) -> Option<String> {
    let owners = pod.owner_references.iter().flatten();
    let mut machines = owners.filter(|owner| {
        let group = owner.api_version.split_once('/').map(|(group, _)| group);
        owner.controller == Some(true) && owner.kind == "VirtualMachineInstance" && group == Some(API_GROUP)
    });
    machines.next().map(|owner| owner.uid.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_launcher_is_controlled_by_its_machine() {
        let owner = |api_version: &str, kind: &str, controller: bool| {
            let owner =
                json!({"apiVersion": api_version, "kind": kind, "name": "db", "uid": "u1", "controller": controller});
            machine_of(&serde_json::from_value(json!({"name": "p", "ownerReferences": [owner]})).unwrap())
        };
        assert_eq!(owner("kubevirt.io/v1", "VirtualMachineInstance", true), Some("u1".into()));
        assert_eq!(owner("kubevirt.io/v1alpha3", "VirtualMachineInstance", true), Some("u1".into()));
        assert_eq!(owner("kubevirt.io/v1", "VirtualMachineInstance", false), None);
        assert_eq!(owner("kubevirt.io/v1", "VirtualMachine", true), None);
        assert_eq!(owner("example.org/v1", "VirtualMachineInstance", true), None);
        assert_eq!(machine_of(&ObjectMeta::default()), None);
    }
}
