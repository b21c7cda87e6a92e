//! Traffic that goes on while something else happens.

use super::cluster::Running;
use super::reach::Pod;

/// What never stops between two pods, in both families.
pub struct Traffic {
    allowed: Vec<Running>,
    denied: Vec<Running>,
}

impl Traffic {
    /// TCP and UDP exchanges and echoes, which may pass, and attempts to connect to a port, which may not.
    pub fn between(client: &Pod, server: &Pod, denied: Option<u16>) -> Self {
        let start = |arguments: &[&str]| {
            let mut probe = client.probes().probe();
            probe.args(arguments).args(["--interval", "10ms", "--duration", "10m"]);
            Running::start(probe)
        };
        let (mut allowed, mut attempts) = (Vec::new(), Vec::new());
        for address in &server.addresses {
            allowed.push(start(&["stream", "tcp", address, "80"]));
            allowed.push(start(&["stream", "udp", address, "53"]));
            allowed.push(start(&["stream", "icmp", address]));
            if let Some(port) = denied {
                attempts.push(start(&["hammer", "tcp", address, &port.to_string(), "--timeout", "300ms"]));
            }
        }
        Self { allowed, denied: attempts }
    }

    /// Ends it: nothing of the one is lost, and nothing of the other came through.
    pub fn was_as_it_must_be(self, when: &str) {
        for said in self.allowed.into_iter().map(Running::stop) {
            println!("{when}: {said}");
            assert!(said.contains(" lost 0 ") && !said.contains("sent 0 "), "{when}: {said}");
        }
        for said in self.denied.into_iter().map(Running::stop) {
            println!("{when}: {said}");
            assert!(said.contains(" open 0 ") && !said.contains("tried 0 "), "{when}: {said}");
        }
    }
}
