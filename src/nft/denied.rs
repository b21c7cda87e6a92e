//! Listens to what the kernel tells of denied packets.
//!
//! Owns: the netlink socket. Must not: interpret; [`nflog`](super::nflog) does.

use super::monitor::{netlink, waited_for};
use super::nflog::{Told, answer, packets, requests};
use super::skeleton::LOG_GROUP;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags, bind, recvfrom, sendto, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Some thousand packets. What is beyond is lost, which is noticed.
const RECEIVE_BUFFER: usize = 2 << 20;
/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 << 10;
/// So much is read before others have their turn.
const TURN: usize = 64;
/// The kernel's own port.
const KERNEL: u32 = 0;

/// The socket. It belongs to the network namespace in which it was opened, as the tables do.
pub struct Denied {
    socket: AsyncFd<OwnedFd>,
    datagram: Vec<u8>,
    next: Option<u32>,
}

/// What was told since it was last asked for.
#[derive(Debug, Default)]
pub struct News {
    /// The packets, in their order.
    pub told: Vec<Told>,
    /// How many could not be told.
    pub lost: u64,
}

impl Denied {
    /// Listens from now on. Nobody else can at the same time.
    pub fn open() -> io::Result<Self> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    /// Likewise, with room for so many bytes that were not taken in yet.
    pub fn with_buffer(bytes: usize) -> io::Result<Self> {
        let socket = netlink()?;
        // Allowed to those who may change tables; the kernel doubles it.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, bytes / 2);
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let mut datagram = vec![0; DATAGRAM];
        for request in requests(LOG_GROUP) {
            sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(KERNEL, 0))?;
            // The kernel has answered before it took the question off our hands; packets may have come before that.
            loop {
                let (_, length, _) = recvfrom(&socket, datagram.as_mut_slice(), RecvFlags::DONTWAIT)?;
                match answer(&datagram[..length.min(DATAGRAM)]) {
                    Some(0) => break,
                    Some(error) => return Err(io::Error::from_raw_os_error(error)),
                    None => {}
                }
            }
        }
        let socket = waited_for(socket)?;
        Ok(Self { socket, datagram, next: None })
    }

    /// Waits until there are news.
    pub async fn news(&mut self) -> io::Result<News> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut news = News::default();
            for turn in 0.. {
                if turn == TURN {
                    return Ok(news);
                }
                match recvfrom(self.socket.get_ref(), self.datagram.as_mut_slice(), RecvFlags::DONTWAIT) {
                    Ok((_, length, Some(sender)))
                        if SocketAddrNetlink::try_from(sender.clone()).is_ok_and(|s| s.pid() == KERNEL) =>
                    {
                        take_in(&self.datagram[..length.min(DATAGRAM)], &mut self.next, &mut news);
                    }
                    Ok(_) | Err(Errno::INTR) => {}
                    // How many they were, the next one's number tells.
                    Err(Errno::NOBUFS) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if !news.told.is_empty() || news.lost > 0 {
                return Ok(news);
            }
        }
    }
}

fn take_in(datagram: &[u8], next: &mut Option<u32>, news: &mut News) {
    // One that is cut off is missed by its number.
    for packet in packets(datagram).flatten() {
        if let Some(sequence) = packet.sequence {
            news.lost += u64::from(next.map_or(0, |next| sequence.wrapping_sub(next)));
            *next = Some(sequence.wrapping_add(1));
        }
        news.told.extend(packet.told);
    }
}
