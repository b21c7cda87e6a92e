//! Whose an address is, while pods finish, terminate, move and hand it on (S10).

use super::cluster::{Namespace, Running, alone, calm, eventually, folder};
use super::reach::{Pod, target};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Makes a node's address manager hand out this address next, if it is free.
fn next_address(node: &str, address: &str) {
    let before = Ipv4Addr::from(u32::from(address.parse::<Ipv4Addr>().unwrap()) - 1);
    let file = folder().join(node).join("var/lib/cni/networks/pods/last_reserved_ip.0");
    std::fs::write(file, before.to_string()).unwrap();
}

#[test]
fn s10_a_finished_pods_address_is_nobodys_and_its_next_owner_inherits_nothing() {
    // Others' pods would take the address.
    let _alone = alone();
    let namespace = Namespace::new("reused");
    let pods = namespace.pods(&[("server", "server", "n2")]);
    namespace.group("server", "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: job}}}]", None);
    namespace.group("job", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.bind("job", &["job"], "job");
    namespace.enforced();
    for _ in 0..3 {
        namespace.apply(
            "{apiVersion: v1, kind: Pod, metadata: {name: job, labels: {app: job}}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, nodeSelector: {kubernetes.io/hostname: n1}, containers: [{name: c, image: 'ringfence.test/toolbox:1', imagePullPolicy: Never, command: [/bin/sleep, '3']}]}}",
        );
        namespace.kubectl(&["wait", "--for=condition=Ready", "pod/job", "--timeout=30s"]);
        let job = namespace.pod("job");
        namespace.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/job", "--timeout=30s"]);
        // Nobody deletes it; its status keeps the address, which its node hands out again as soon as it can.
        let held = folder().join("n1/var/lib/cni/networks/pods").join(&job.addresses[0]);
        eventually("the address is free", || !held.exists());
        next_address("n1", &job.addresses[0]);
        let heir = namespace.pods(&[("heir", "heir", "n1")]).remove("heir").unwrap();
        assert_eq!(heir.addresses[0], job.addresses[0], "handed on");
        let reaches = || heir.probes().reaches_one(&target("tcp", &pods["server"].addresses[0], 80));
        for _ in 0..5 {
            assert!(!reaches(), "the heir is no job");
        }
        assert_eq!(namespace.get("sg", "job")["status"]["members"], 0);
        namespace.kubectl(&["delete", "pod", "job", "heir", "--timeout=30s"]);
    }
}

#[test]
fn s10_a_terminating_pod_serves_until_it_is_gone() {
    let _calm = calm();
    let namespace = Namespace::new("terminating");
    let manifest = super::reach::pod_manifest("server", "server", "n2")
        .replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 6")
        // It goes on after the signal that asks it to end.
        .replace("[/bin/probe, serve,", "[/bin/sh, -c, 'trap \"\" TERM; /bin/probe \"$@\" & wait; wait', sh, serve,");
    namespace.apply(&manifest);
    let client = namespace.pods(&[("client", "client", "n1")]).remove("client").unwrap();
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/server", "--timeout=60s"]);
    let server = namespace.pod("server");
    for group in ["server", "client"] {
        let peer = if group == "server" { "client" } else { "server" };
        let rule = format!("[{{protocol: TCP, ports: [80], remote: {{securityGroup: {{name: {peer}}}}}}}]");
        namespace.group(group, &rule, Some(&rule));
        namespace.bind(group, &[group], group);
    }
    namespace.enforced();
    let mut stream = client.probes().probe();
    stream.args(["stream", "tcp", &server.addresses[0], "80", "--interval", "10ms", "--duration", "5s"]);
    let stream = Running::start(stream);
    std::thread::sleep(Duration::from_millis(500));
    namespace.kubectl(&["delete", "pod", "server", "--wait=false"]);
    eventually("it is terminating", || namespace.get("pod", "server")["metadata"].get("deletionTimestamp").is_some());
    assert!(client.reaches(&server, 80), "new connections too");
    let said = stream.last_line();
    assert!(said.contains(" lost 0 "), "{said}");
    eventually("it is gone from the group", || namespace.get("sg", "server")["status"]["members"] == 0);
}

#[test]
fn s4_a_pod_that_moves_to_another_group_takes_nothing_along() {
    let _calm = calm();
    let namespace = Namespace::new("regrouped");
    let pods = namespace.pods(&[("server", "server", "n1"), ("near", "before", "n1"), ("far", "before", "n2")]);
    namespace.group(
        "server",
        "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: before}}}, {protocol: TCP, ports: [443], remote: {securityGroup: {name: after}}}]",
        None,
    );
    namespace.bind("server", &["server"], "server");
    for group in ["before", "after"] {
        namespace.group(group, "[]", None);
        namespace.bind(group, &[group], group);
    }
    namespace.enforced();
    let clients = [&pods["near"], &pods["far"]];
    let mut open: Vec<TcpStream> = clients.iter().flat_map(|client| connect(client, &pods["server"], 80, 1)).collect();
    let reach = |port| clients.map(|client| client.reaches(&pods["server"], port));
    assert_eq!((reach(80), reach(443)), ([true; 2], [false; 2]));

    namespace.kubectl(&["label", "pod", "near", "far", "app=after", "--overwrite"]);
    eventually("both are seen as moved", || namespace.get("sg", "after")["status"]["members"] == 2);
    namespace.enforced();
    assert_eq!((reach(80), reach(443)), ([false; 2], [true; 2]));
    assert!(open.iter_mut().all(|connection| !answers(connection)), "an open connection lives on");
}

/// A pod of a StatefulSet comes back on the other node, under its old name and with another address.
#[test]
fn s5_a_rescheduled_pod_keeps_its_clients() {
    const CLIENTS: usize = 200;
    let _calm = calm();
    let namespace = Namespace::new("rescheduled");
    let template = super::reach::pod_manifest("db", "db", "n1");
    let spec = template.split_once("spec:\n").unwrap().1.replace('\n', "\n    ");
    namespace.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  serviceName: db\n  selector: {{matchLabels: {{app: db}}}}\n  template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n    {spec}\n"
    ));
    let pods = namespace.pods(&[("client", "client", "n1"), ("stranger", "stranger", "n2")]);
    eventually("the database is there", || {
        !namespace.kubectl(&["get", "pod", "-l", "app=db", "-o", "name"]).is_empty()
    });
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/db-0", "--timeout=60s"]);
    namespace.group("db", "[{protocol: TCP, ports: [3306], remote: {securityGroup: {name: client}}}]", None);
    namespace.group("client", "[]", Some("[{protocol: TCP, ports: [3306], remote: {securityGroup: {name: db}}}]"));
    namespace.bind("db", &["db"], "db");
    namespace.bind("client", &["client"], "client");
    namespace.enforced();

    let before = namespace.pod("db-0");
    let mut connections = connect(&pods["client"], &before, 3306, CLIENTS);
    assert!(connections.iter_mut().all(answers));
    namespace.kubectl(&[
        "patch",
        "statefulset",
        "db",
        "-p",
        "{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"kubernetes.io/hostname\":\"n2\"}}}}}",
    ]);
    namespace.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    let after = namespace.pod("db-0");
    assert_ne!(after.addresses, before.addresses);
    namespace.enforced();
    let mut connections = connect(&pods["client"], &after, 3306, CLIENTS);
    assert!(connections.iter_mut().all(answers), "every client is back");
    assert!(!pods["stranger"].reaches(&after, 3306) && !pods["client"].reaches(&after, 80));
}

/// Connections on which the server has said who it is.
fn connect(from: &Pod, to: &Pod, port: u16, count: usize) -> Vec<TcpStream> {
    let address = SocketAddr::new(to.addresses[0].parse().unwrap(), port);
    let one = |_| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert!(read_line(&mut stream), "the server greets");
        stream
    };
    from.enter(|| (0..count).map(one).collect())
}

/// Whether the server answers on a connection that is open.
fn answers(connection: &mut TcpStream) -> bool {
    use std::io::Write;
    connection.write_all(b"1\n").is_ok() && read_line(connection)
}

fn read_line(connection: &mut TcpStream) -> bool {
    use std::io::Read;
    let mut byte = [0; 1];
    while matches!(connection.read(&mut byte), Ok(1)) {
        if byte == *b"\n" {
            return true;
        }
    }
    false
}
