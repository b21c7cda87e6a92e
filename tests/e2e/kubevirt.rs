//! Virtual machines of KubeVirt, which itself does not run here: its kind with the fields that are used, and pods that are
//! labelled, owned and moved as its launchers are, one with a real guest in it. What KubeVirt itself does inside of a launcher is
//! not seen.
//!
//! The names are those of `staging/src/kubevirt.io/api/core/v1/types.go` in KubeVirt's repository, and the launcher's labels
//! and owner what `pkg/virt-controller/services/template.go` gives it.

use super::cluster::{Namespace, Running, alone, calm, command, eventually, kubectl, number, on_node, output_of};
use super::disruption::SYSTEM;
use super::gate::NODES;
use super::lifecycle::agents_are_ready;
use super::networks::{self, DEFINITIONS, asking, on};
use super::reach::{Pod, pod_manifest};
use super::traffic::Traffic;
use std::time::Duration;

const KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualmachineinstances.kubevirt.io}
spec:
  group: kubevirt.io
  scope: Namespaced
  names: {kind: VirtualMachineInstance, plural: virtualmachineinstances, singular: virtualmachineinstance, shortNames: [vmi]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        x-kubernetes-preserve-unknown-fields: true
";

/// A pod, and whom it reaches on which port or does not.
type Reach<'a> = (&'a Pod, &'a [(&'a Pod, u16, bool)]);

/// The kind of KubeVirt that is used, for as long as this lives.
struct KubeVirt;

impl KubeVirt {
    fn install(namespace: &Namespace) -> Self {
        namespace.apply(KIND);
        kubectl(&["wait", "--for=condition=Established", "crd/virtualmachineinstances.kubevirt.io", "--timeout=30s"]);
        Self
    }
}

impl Drop for KubeVirt {
    fn drop(&mut self) {
        let mut delete = command("kubectl");
        delete.args(["delete", "crd", "virtualmachineinstances.kubevirt.io", "--timeout=60s"]);
        let _ = delete.output();
    }
}

/// The machine `db`, a new one each time it is started.
struct Machine<'a> {
    namespace: &'a Namespace,
    uid: String,
}

impl<'a> Machine<'a> {
    fn start(namespace: &'a Namespace) -> Self {
        namespace.apply(
            "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: db, labels: {app: db}}, spec: {domain: {}}}",
        );
        let uid = namespace.get("vmi", "db")["metadata"]["uid"].as_str().unwrap().to_owned();
        Self { namespace, uid }
    }

    fn label(&self, labels: &[&str]) {
        self.namespace.kubectl(&[&["label", "vmi/db", "--overwrite"], labels].concat());
    }

    /// A launcher on a node, labelled as the machine is when it is created; it ends, successfully, when told to.
    fn launch(&self, pod: &str, node: &str) -> Pod {
        self.launch_on(pod, node, "")
    }

    /// The same, on these networks too.
    fn launch_on(&self, pod: &str, node: &str, networks: &str) -> Pod {
        let owner = format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: db, uid: {}, controller: true, blockOwnerDeletion: true}}",
            self.uid
        );
        let manifest = asking(&pod_manifest(pod, "db", node), networks)
            .replace("labels: {", &format!("ownerReferences: [{owner}], labels: {{kubevirt.io: virt-launcher, "))
            .replace("  containers:", "  restartPolicy: Never\n  containers:")
            .replace(
                "[/bin/probe, serve,",
                "[/bin/sh, -c, '/bin/probe \"$@\" & until [ -e /end ]; do sleep 0.2; done', sh, serve,",
            );
        self.namespace.apply(&manifest);
        self.namespace.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
        self.namespace.pod(pod)
    }

    fn stop(self, pod: &str) {
        self.namespace.kubectl(&["delete", "vmi/db"]);
        self.namespace.kubectl(&["wait", "--for=delete", &format!("pod/{pod}"), "--timeout=60s"]);
    }
}

/// What a launcher does when its machine has gone elsewhere.
fn finish(namespace: &Namespace, pod: &str) {
    namespace.kubectl(&["exec", pod, "--", "touch", "/end"]);
    eventually("the source has finished", || namespace.get("pod", pod)["status"]["phase"] == "Succeeded");
}

fn bind(namespace: &Namespace) {
    namespace.apply(
        "{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {name: db}, \
         spec: {securityGroups: [{name: db}], target: {virtualMachineSelector: {matchLabels: {app: db}}}}}",
    );
}

#[test]
fn s4_s7_a_machine_keeps_its_groups_over_stops_changes_and_migrations() {
    let _alone = alone();
    let namespace = Namespace::new("kubevirt");
    // Ringfence runs since before there was such a kind.
    let _kubevirt = KubeVirt::install(&namespace);
    let mut pods = namespace.pods(&[("app", "app", "n1"), ("far", "app", "n2"), ("backup", "backup", "n1")]);
    let (app, far, backup) = ["app", "far", "backup"].map(|pod| pods.remove(pod).unwrap()).into();
    namespace.group("app", "[]", None);
    namespace.bind("app", &["app"], "app");
    let from_app = |traffic: &str| format!("{{{traffic}, remote: {{securityGroup: {{name: app}}}}}}");
    let allowed = ["protocol: TCP, ports: [80]", "protocol: UDP, ports: [53]", "protocol: ICMP", "protocol: ICMPv6"];
    namespace.group("db", &format!("[{}]", allowed.map(from_app).join(", ")), None);
    bind(&namespace);
    // And the other way round: the machine's addresses are what a group means.
    namespace.group("backup", "[{protocol: TCP, ports: [22], remote: {securityGroup: {name: db}}}]", None);
    namespace.bind("backup", &["backup"], "backup");
    namespace.enforced();

    let machine = Machine::start(&namespace);
    let source = machine.launch("virt-launcher-db-a", "n1");
    machine.label(&["kubevirt.io/nodeName=n1"]);
    let right = |launcher: &Pod| {
        let expected: [Reach<'_>; 4] = [
            (&app, &[(launcher, 80, true), (launcher, 22, false), (&backup, 22, false)]),
            (&far, &[(launcher, 80, true), (launcher, 22, false)]),
            (&backup, &[(launcher, 80, false)]),
            (launcher, &[(&backup, 22, true), (&backup, 80, false)]),
        ];
        std::thread::scope(|scope| {
            for (from, expected) in expected {
                scope.spawn(move || {
                    let targets: Vec<String> = expected.iter().flat_map(|(to, port, _)| to.on("tcp", *port)).collect();
                    let answers: Vec<bool> = expected.iter().flat_map(|(.., answers)| [*answers; 2]).collect();
                    assert_eq!(from.probes().reaches(&targets), answers, "{} to {targets:?}", from.name);
                });
            }
        });
    };
    namespace.enforced();
    right(&source);
    assert_eq!(namespace.get("sgb", "db")["status"]["targets"], 1);

    // Its labels are the machine's, not the pod's.
    machine.label(&["app=other"]);
    eventually("it is no member", || namespace.get("sg", "db")["status"]["members"] == 0);
    namespace.enforced();
    assert!(
        backup.reaches(&source, 22) && !source.reaches(&backup, 22),
        "nothing guards it, and it is nobody's member"
    );
    machine.label(&["app=db"]);
    eventually("it is a member", || namespace.get("sg", "db")["status"]["members"] == 1);
    namespace.enforced();
    right(&source);

    // Agents that start anew read the machine's labels before they commit anything.
    namespace.kubectl(&["label", "pod/virt-launcher-db-a", "--overwrite", "app=stale"]);
    let denied = backup.probes().hammer(&source.addresses[0], "22", ["2ms", "300ms"]);
    kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/ringfence-agent"]);
    agents_are_ready();
    let denied = denied.stop();
    assert!(denied.contains(" open 0 ") && !denied.contains("tried 0 "), "{denied}");
    right(&source);

    // A migration: the target is right before the machine arrives, and the source to its end.
    let at_source = Traffic::between(&far, &source, Some(22));
    machine.label(&["kubevirt.io/migrationTargetNodeName=n2"]);
    let target = machine.launch("virt-launcher-db-b", "n2");
    namespace.enforced();
    let at_target = Traffic::between(&app, &target, Some(22));
    right(&target);
    right(&source);
    at_source.was_as_it_must_be("before it arrives");
    machine.label(&["kubevirt.io/nodeName=n2", "kubevirt.io/migrationTargetNodeName-"]);
    finish(&namespace, "virt-launcher-db-a");
    eventually("the source is no member", || namespace.get("sg", "db")["status"]["members"] == 1);
    namespace.enforced();
    right(&target);
    namespace.kubectl(&["delete", "pod", "virt-launcher-db-a"]);
    namespace.enforced();
    right(&target);
    at_target.was_as_it_must_be("while the source goes");
    // Labels are followed on the node it came to.
    machine.label(&["app=other"]);
    eventually("it is no member", || namespace.get("sg", "db")["status"]["members"] == 0);
    namespace.enforced();
    assert!(backup.reaches(&target, 22));
    machine.label(&["app=db"]);

    // Stopped and started it is another to Kubernetes, and the same to who wrote the binding.
    machine.stop("virt-launcher-db-b");
    let machine = Machine::start(&namespace);
    let again = machine.launch("virt-launcher-db-c", "n1");
    namespace.enforced();
    right(&again);
    machine.stop("virt-launcher-db-c");
    eventually("nobody is a member", || namespace.get("sg", "db")["status"]["members"] == 0);
}

/// A network on which a machine keeps its addresses wherever it is.
const STABLE: &str = r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: stable}
spec:
  config: |
    {
      "cniVersion": "1.0.0",
      "name": "stable",
      "plugins": [
        {
          "type": "bridge", "bridge": "br9", "isGateway": true,
          "capabilities": {"mac": true},
          "ipam": {
            "type": "static",
            "addresses": [
              {"address": "10.30.9.9/24", "gateway": "10.30.9.1"},
              {"address": "fd30:0:0:9::9/64", "gateway": "fd30:0:0:9::1"}
            ]
          }
        },
        {"type": "ringfence-cni"}
      ]
    }
"#;

/// A real guest, in the pod that runs the machine.
struct Guest;

impl Guest {
    const NAME: &str = "kubevirt";
    const MAC: &str = "52:54:00:00:00:40";
    const ADDRESSES: [&str; 2] = ["10.30.9.9", "fd30:0:0:9::9"];

    fn boot(node: &str, launcher: &Pod) -> Self {
        Self::prepare(node);
        let mut start = command("guest");
        start.args(["start", node, Self::NAME, "--pod", &format!("{}/{}", launcher.namespace, launcher.name)]);
        start.args([
            "--mac",
            Self::MAC,
            "--address",
            &Self::ADDRESSES.join(","),
            "--gateway",
            "10.30.9.1,fd30:0:0:9::1",
        ]);
        output_of(start);
        Self::lead_to(node);
        Self
    }

    fn migrate(&self, node: &str, launcher: &Pod) {
        Self::prepare(node);
        let mut migrate = command("guest");
        migrate.args(["migrate", Self::NAME, &format!("{}/{}", launcher.namespace, launcher.name)]);
        output_of(migrate);
        Self::lead_to(node);
    }

    /// Makes its addresses lead to a node, as the network of a platform for machines does.
    fn lead_to(node: &str) {
        for (address, network) in Self::ADDRESSES.iter().zip(["172.30.0.", "fd00:172:30::"]) {
            for other in NODES {
                let mut route = command("node");
                route.args([other, "ip", "route"]);
                if other == node {
                    // There may be none.
                    let _ = route.args(["delete", address]).output();
                } else {
                    let via = format!("{network}{}", node.trim_start_matches('n'));
                    route.args(["replace", address, "via", &via]);
                    output_of(route);
                }
            }
        }
    }

    /// Wherever it is, it finds its router by the same link address.
    fn prepare(node: &str) {
        on_node(node, &["ip", "link", "set", "br9", "address", "02:00:00:00:09:01"]);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut stop = command("guest");
        stop.args(["stop", Self::NAME]);
        let _ = stop.output();
        Self::lead_to("n2");
        Self::lead_to("n1");
        for node in NODES {
            let mut remove = command("node");
            remove.args([node, "ip", "link", "del", "br9"]);
            let _ = remove.output();
        }
    }
}

#[test]
fn s4_connections_of_a_machine_that_keeps_its_address_go_along() {
    let _calm = calm();
    let namespace = Namespace::new("kubevirt-stable");
    let _kubevirt = KubeVirt::install(&namespace);
    namespace.apply(DEFINITIONS);
    namespace.apply(STABLE);
    let [app, far] = networks::pods(&namespace, [("app", "app", "n1", "bridge"), ("far", "app", "n2", "bridge")]);
    namespace.group("app", "[]", None);
    networks::bind(&namespace, "app", "app", "[bridge]");
    let from_app =
        |ports: &str| format!("[{{protocol: TCP, ports: [{ports}], remote: {{securityGroup: {{name: app}}}}}}]");
    namespace.group("db", &from_app("22, 3306"), None);
    namespace.apply(
        "{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {name: db}, spec: {securityGroups: \
         [{name: db}], target: {virtualMachineSelector: {matchLabels: {app: db}}}, networks: [stable]}}",
    );
    let machine = Machine::start(&namespace);
    let asked = format!("[{{\"name\": \"stable\", \"mac\": \"{}\"}}]", Guest::MAC);
    let source = machine.launch_on("virt-launcher-db-a", "n1", &asked);
    let guest = Guest::boot("n1", &source);
    namespace.enforced();
    let source = on(&namespace, &source, "stable");
    assert_eq!(source.addresses, Guest::ADDRESSES);
    assert!(app.reaches(&source, 3306) && far.reaches(&source, 3306) && !app.reaches(&source, 443));
    let streams = |port: &str| -> Vec<Running> {
        let stream = |(from, address): (&Pod, &&str)| {
            let mut stream = from.probes().probe();
            stream.args(["stream", "tcp", address, port, "--interval", "20ms", "--duration", "10m"]);
            Running::start(stream)
        };
        [&app, &far]
            .into_iter()
            .flat_map(|from| Guest::ADDRESSES.iter().map(move |address| stream((from, address))))
            .collect()
    };
    let (kept, cut) = (streams("3306"), streams("22"));
    let denied = app.probes().hammer(Guest::ADDRESSES[0], "443", ["10ms", "200ms"]);

    let target = machine.launch_on("virt-launcher-db-b", "n2", &asked);
    assert_eq!(on(&namespace, &target, "stable").addresses, source.addresses);
    namespace.enforced();
    assert!(app.reaches(&source, 3306), "nobody contests the address of one machine");
    guest.migrate("n2", &target);
    finish(&namespace, "virt-launcher-db-a");
    let handovers = "jsonpath={range .items[*]}{.spec.virtualMachineInstance} {.spec.toNode}{\"\\n\"}{end}";
    let told = || kubectl(&["get", "connectionhandovers", "-o", handovers]);
    eventually("the old node tells the new one", || told().contains(&format!("{} n2", machine.uid)));
    eventually("new connections", || app.reaches(&source, 3306) && far.reaches(&source, 3306));
    // What TCP sends again comes after some seconds.
    std::thread::sleep(Duration::from_secs(10));
    for said in kept.into_iter().map(Running::stop) {
        // It comes in order, so what is missing was under way at the end.
        assert!(!said.contains("broken") && number(&said, "lost") < 50 && number(&said, "received") > 250, "{said}");
    }
    // And what the rule alone allowed goes with it, on the node that never saw it begin.
    namespace.group("db", &from_app("3306"), None);
    namespace.enforced();
    std::thread::sleep(Duration::from_secs(2));
    for said in cut.into_iter().map(Running::stop) {
        assert!(number(&said, "lost") > 50 && number(&said, "received") > 250, "{said}");
    }
    let denied = denied.stop();
    assert!(denied.contains(" open 0 ") && !denied.contains("tried 0 "), "{denied}");
    assert!(!app.reaches(&source, 443) && !app.reaches(&source, 22));
}
