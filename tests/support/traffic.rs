//! Flows that run while something else changes, and count every packet.

use super::topology::Host;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So many datagrams are under way at most: fewer than any queue on the way holds.
const WINDOW: u64 = 128;
/// So many leave in a row. Then there is a pause, or nothing else would get done on a small machine.
const BURST: u64 = 16;
const PAUSE: Duration = Duration::from_micros(50);
/// A datagram that takes longer than this is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// Datagrams one way, from one host to another, until it is stopped.
pub struct Flow {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
}

/// What a flow carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Datagrams that were waited for in vain.
    pub lost: u64,
}

/// What a sender does about datagrams that do not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It waits for them, so that one that is missing is lost and not late.
    All,
    /// It does not wait: none should arrive.
    None,
}

/// A UDP socket of a host.
pub fn udp(host: &Host, address: IpAddr, port: u16) -> UdpSocket {
    let socket = host.netns.enter(|| UdpSocket::bind((address, port)).unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

impl Flow {
    /// Starts sending.
    pub fn start(from: UdpSocket, to: UdpSocket, expect: Expect) -> Self {
        let counts = Arc::new(Counts::default());
        let destination = to.local_addr().unwrap();
        let sender = counts.clone();
        let receiver = counts.clone();
        let threads = vec![
            std::thread::spawn(move || receiver.receive(&to)),
            std::thread::spawn(move || sender.send(&from, destination, expect)),
        ];
        Self { counts, threads }
    }

    /// What it has carried so far.
    pub fn carried(&self) -> Carried {
        let Counts { sent, received, lost, .. } = &*self.counts;
        Carried { received: received.load(SeqCst), sent: sent.load(SeqCst), lost: lost.load(SeqCst) }
    }

    /// Stops it, waits for what is under way, and tells.
    pub fn stop(mut self) -> Carried {
        self.end();
        self.carried()
    }

    fn end(&mut self) {
        self.counts.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.end();
    }
}

impl Counts {
    fn send(&self, from: &UdpSocket, to: SocketAddr, expect: Expect) {
        while !self.stop.load(SeqCst) {
            if self.sent.load(SeqCst).is_multiple_of(BURST) {
                std::thread::sleep(PAUSE);
            }
            // Refused ones do not count: the kernel tells of earlier ICMP errors here.
            if from.send_to(b"flow", to).is_ok() {
                self.sent.fetch_add(1, SeqCst);
            }
            if expect == Expect::All {
                self.wait(WINDOW);
            }
        }
        if expect == Expect::All {
            self.wait(1);
        }
    }

    /// Until less than this many are under way.
    fn wait(&self, window: u64) {
        let under_way = || self.sent.load(SeqCst) - self.received.load(SeqCst) - self.lost.load(SeqCst);
        let since = Instant::now();
        while under_way() >= window {
            if since.elapsed() > LOST_AFTER {
                self.lost.fetch_add(under_way(), SeqCst);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn receive(&self, to: &UdpSocket) {
        let mut buffer = [0; 64];
        let mut last = false;
        loop {
            match to.recv_from(&mut buffer) {
                Ok(_) => {
                    self.received.fetch_add(1, SeqCst);
                    last = false;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let under_way = self.sent.load(SeqCst) > self.received.load(SeqCst) + self.lost.load(SeqCst);
                    // One more time-out after the stop, for what was under way then.
                    if self.stop.load(SeqCst) && (last || !under_way) {
                        return;
                    }
                    last = self.stop.load(SeqCst);
                }
                Err(_) => {}
            }
        }
    }
}
