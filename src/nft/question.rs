//! Questions to the kernel over netlink: how they are written, asked and answered.
//!
//! Owns: the socket of one question after the other. Must not: know what they are about.

use super::monitor::netlink;
use super::notification::{FAMILY_HEADER, HEADER, attributes, messages};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto, sockopt};

/// The kernel answers in pieces of at most this, however large the answer is.
const DATAGRAM: usize = 64 << 10;
const KERNEL: u32 = 0;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message from whatever port it is sent, without a sequence number. What follows the header begins with the family.
pub(super) fn message(kind: u16, flags: u16, family: [u8; FAMILY_HEADER], body: &[u8]) -> Vec<u8> {
    let length = HEADER + FAMILY_HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    // None of ours is longer than some hundred bytes.
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.resize(HEADER, 0);
    message.extend(family);
    message.extend(body);
    message
}

/// A kind and its value, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // None of ours is longer than some hundred bytes.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut attribute = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The value of one kind.
pub(super) fn one(list: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(list).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A socket for questions. It never waits: the kernel has answered before it took a question off our hands, and writes the next
/// piece while the last one is taken.
pub(super) struct Questions {
    socket: OwnedFd,
    datagram: Vec<u8>,
}

impl Questions {
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = netlink()?;
        // The kernel writes in pieces of what the reader takes at once.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, 4 * DATAGRAM);
        Ok(Self { socket, datagram: vec![0; DATAGRAM] })
    }

    /// Asks for a list, and takes each message of it that is of this kind, without its header.
    pub(super) fn list(&mut self, question: &[u8], wanted: u16, mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
        self.ask(question)?;
        loop {
            for (kind, body) in messages(self.receive()?) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => outcome(body)?,
                    kind if kind == wanted => take(body),
                    _ => {}
                }
            }
        }
    }

    /// Asks for something to be done, and for an answer.
    pub(super) fn command(&mut self, command: &[u8]) -> Result<(), Errno> {
        self.ask(command)?;
        let answer = messages(self.receive()?).find(|(kind, _)| *kind == ERROR);
        answer.map_or(Err(Errno::IO), |(_, body)| outcome(body))
    }

    fn ask(&self, question: &[u8]) -> Result<(), Errno> {
        sendto(&self.socket, question, SendFlags::empty(), &SocketAddrNetlink::new(KERNEL, 0)).map(drop)
    }

    fn receive(&mut self) -> Result<&[u8], Errno> {
        loop {
            match recvfrom(&self.socket, self.datagram.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, length, _)) => return Ok(&self.datagram[..length.min(DATAGRAM)]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a message says that is called an error, and is none if its number is 0.
fn outcome(body: &[u8]) -> Result<(), Errno> {
    match body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(Errno::from_raw_os_error(-number)),
        None => Err(Errno::IO),
    }
}
