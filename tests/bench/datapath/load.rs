//! The traffic, all of it on one thread, and its price: the processor time of that thread.

use super::support::topology::Host;
use super::support::traffic;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// The processor time of one turn.
const TURN: Duration = Duration::from_millis(20);
/// With its headers, one of the shortest frames there are: 64 bytes.
const PAYLOAD: [u8; 18] = *b"eighteen bytes....";

/// Moves this thread, and those it starts, to one processor: packets then do not change hands on their way.
pub fn stay_on_one_processor() {
    let mut processors = CpuSet::new();
    // The last one: interrupts tend to go to the first.
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    processors.set(last);
    sched_setaffinity(None, &processors).unwrap();
}

fn processor_time() -> Duration {
    // Never before 1970, nor negative.
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Repeats some work until the turn is over, and returns the nanoseconds for one unit. The work returns how many it did.
fn price(mut work: impl FnMut() -> usize) -> f64 {
    // Back into the caches.
    work();
    let start = processor_time();
    let mut units = 0;
    loop {
        units += work();
        let spent = processor_time() - start;
        if spent >= TURN {
            return spent.as_nanos() as f64 / units as f64;
        }
    }
}

/// UDP flows that have been answered, so that conntrack has them as established.
pub struct Flows {
    sockets: Vec<UdpSocket>,
    sent: Cell<u64>,
}

impl Flows {
    /// One from each of the client's addresses.
    pub fn open(client: &Host, addresses: &[IpAddr], at: &Host, server: SocketAddr) -> Self {
        let listening = traffic::udp(at, server.ip(), server.port());
        let sockets = addresses.iter().map(|address| {
            let socket = traffic::udp(client, *address, 0);
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            listening.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for _ in 0..2 {
                socket.send(b"question").unwrap();
                let (_, from) = listening.recv_from(&mut [0; 64]).unwrap();
                listening.send_to(b"answer", from).unwrap();
                socket.recv(&mut [0; 64]).unwrap();
            }
            socket
        });
        Self { sockets: sockets.collect(), sent: Cell::new(0) }
    }

    /// The price of a datagram.
    pub fn nanoseconds_per_packet(&self) -> f64 {
        price(|| {
            for socket in &self.sockets {
                socket.send(&PAYLOAD).unwrap();
            }
            self.sent.set(self.sent.get() + self.sockets.len() as u64);
            self.sockets.len()
        })
    }

    /// Datagrams sent so far, without those that opened the flows.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }
}

/// The price of a TCP connection, opened, accepted, and closed by both ends.
pub fn nanoseconds_per_connection(client: &Host, addresses: &[IpAddr], listener: &TcpListener) -> f64 {
    let server = listener.local_addr().unwrap();
    client.netns.enter(|| {
        price(|| {
            for address in addresses {
                let near = connect(*address, server);
                let (far, _) = listener.accept().unwrap();
                // The server first, so that the port waits on its side.
                drop(far);
                drop(near);
            }
            addresses.len()
        })
    })
}

fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    socket.into()
}

/// One TCP connection that is kept full.
pub struct Stream {
    near: TcpStream,
    far: TcpStream,
}

impl Stream {
    /// From this address to the listener.
    pub fn open(client: &Host, address: IpAddr, listener: &TcpListener) -> Self {
        let near = client.netns.enter(|| connect(address, listener.local_addr().unwrap()));
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        Self { near, far }
    }

    /// The price of a thousand bytes.
    pub fn nanoseconds_per_kilobyte(&self) -> f64 {
        let block = vec![0; 64 << 10];
        let mut buffer = vec![0; 256 << 10];
        1000.
            * price(|| {
                while at_once((&self.near).write(&block)).is_some() {}
                let mut bytes = 0;
                while let Some(count) = at_once((&self.far).read(&mut buffer)) {
                    bytes += count;
                }
                bytes
            })
    }
}

/// What a socket did without waiting.
fn at_once(result: std::io::Result<usize>) -> Option<usize> {
    match result {
        Ok(count) => Some(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
