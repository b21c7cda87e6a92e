//! Hears of every transaction on this node's tables, and tells those whose tables someone else has changed.
//!
//! Owns: the netlink socket. Must not: judge; [`ledger`](super::ledger) does.

use super::ledger::{Ledger, News, WatcherId};
use super::notification::{Notification, generation_request, notifications};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recvfrom, sendto, socket_with, sockopt};
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel tells of every element: this holds a transaction of some 400,000. What is beyond is lost, which is noticed.
/// It is not allocated before it is needed.
const RECEIVE_BUFFER: usize = 64 << 20;
/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 << 10;
/// The kernel's own port.
const KERNEL: u32 = 0;
/// The mask of group 7, which hears of tables.
const GROUP_NFTABLES: u32 = 1 << (7 - 1);

/// The socket. It belongs to the network namespace in which it was opened, as the tables do.
pub struct Monitor {
    socket: AsyncFd<OwnedFd>,
    heard: Mutex<Heard>,
}

struct Heard {
    ledger: Ledger,
    /// Whom to tell, by watcher.
    tell: Vec<Box<dyn Fn() + Send>>,
    datagram: Vec<u8>,
}

impl Monitor {
    /// Hears of every transaction from now on.
    pub fn open() -> io::Result<Arc<Self>> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    /// Likewise, with room for so many bytes that were not taken in yet.
    pub fn with_buffer(bytes: usize) -> io::Result<Arc<Self>> {
        let socket = netlink()?;
        // Allowed to those who may change tables; the kernel doubles it. Without it more is lost, and noticed.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, bytes / 2);
        bind(&socket, &SocketAddrNetlink::new(0, GROUP_NFTABLES))?;
        let heard = Heard { ledger: Ledger::default(), tell: Vec::new(), datagram: vec![0; DATAGRAM] };
        let socket = waited_for(socket)?;
        Ok(Arc::new(Self { socket, heard: Mutex::new(heard) }))
    }

    /// Listens until that fails, which it does not unless the machine is in trouble.
    pub async fn run(&self) -> io::Result<Infallible> {
        loop {
            let mut ready = self.socket.readable().await?;
            self.drain()?;
            ready.clear_ready();
        }
    }

    /// Watches some tables, named as in scripts. Whenever there are news, calls `tell`, which must not block.
    pub fn watch(self: &Arc<Self>, tables: &'static [&'static str], tell: impl Fn() + Send + 'static) -> Watch {
        let mut heard = self.lock();
        heard.tell.push(Box::new(tell));
        Watch { id: heard.ledger.watch(tables), monitor: self.clone() }
    }

    /// Takes in what the kernel has told so far: all that was committed before.
    fn drain(&self) -> io::Result<()> {
        let mut heard = self.lock();
        let Heard { ledger, tell, datagram } = &mut *heard;
        let result = loop {
            let (length, sender) = match recvfrom(
                self.socket.get_ref(),
                datagram.as_mut_slice(),
                RecvFlags::DONTWAIT | RecvFlags::TRUNC,
            ) {
                Ok((_, length, sender)) => (length, sender),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    ledger.lose();
                    continue;
                }
                Err(Errno::AGAIN) => break Ok(()),
                Err(error) => {
                    ledger.lose();
                    break Err(error.into());
                }
            };
            let sender = sender.and_then(|address| SocketAddrNetlink::try_from(address).ok());
            if sender.is_none_or(|address| address.pid() != KERNEL) {
                continue;
            }
            // One that did not fit is whole up to where it was cut.
            for notification in notifications(&datagram[..length.min(DATAGRAM)]) {
                match notification {
                    Ok(notification) => ledger.hear(notification),
                    Err(_) => ledger.lose(),
                }
            }
            if length > DATAGRAM {
                ledger.lose();
            }
        };
        for id in ledger.take_untold() {
            tell[id]();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // A panic in between may have lost something, but nothing here panics.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the tables of one owner.
pub struct Watch {
    monitor: Arc<Monitor>,
    id: WatcherId,
}

impl Watch {
    /// What happened to the tables since this was last asked, up to now.
    pub fn take(&self) -> News {
        self.drain();
        self.monitor.lock().ledger.take(self.id)
    }

    /// To be held while the owner runs one commit: its transaction is no news.
    pub fn own(&self) -> Own<'_> {
        self.drain();
        self.monitor.lock().ledger.begin(self.id);
        Own(self)
    }

    fn drain(&self) {
        // If listening fails, `run` says so; until then everything is taken for lost.
        let _ = self.monitor.drain();
    }
}

/// A commit of the owner.
pub struct Own<'a>(&'a Watch);

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let Watch { monitor, id } = self.0;
        self.0.drain();
        monitor.lock().ledger.end(*id);
        self.0.drain();
    }
}

/// The generation that is in force: with every transaction there is a new one.
pub fn generation() -> io::Result<u32> {
    let socket = netlink()?;
    sendto(&socket, &generation_request(), SendFlags::empty(), &SocketAddrNetlink::new(KERNEL, 0))?;
    let mut answer = vec![0; DATAGRAM];
    // The kernel has answered before it took the question off our hands.
    let (_, length, _) = recvfrom(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT)?;
    let generation = notifications(&answer[..length]).find_map(|notification| match notification {
        Ok(Notification::Committed(transaction)) => Some(transaction.generation),
        _ => None,
    });
    generation.ok_or_else(|| io::Error::other("the kernel does not say which generation of tables is in force"))
}

/// A socket that tasks wait for until there is something to read.
#[expect(deprecated, reason = "what replaces it is unsafe; an OwnedFd keeps its descriptor, as this one demands")]
pub(super) fn waited_for(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// A socket to ask the kernel of tables, packets and connections.
pub(super) fn netlink() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))
}
