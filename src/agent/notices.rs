//! Notices that devices or results of CNI plugins may have changed. Says no more than that: whoever wakes up reads what is there.

use super::devices::RESULTS;
use crate::runtime::Coalescer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// RTNLGRP_LINK, as a bit.
const LINKS: u32 = 1;
/// No notice is the only carrier of a fact.
const ANYWAY: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The kernel's two sources of news.
pub struct Notices {
    links: OwnedFd,
    files: OwnedFd,
    libcni: PathBuf,
}

impl Notices {
    /// Listens from now on.
    pub fn new(libcni: PathBuf) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it is rtnetlink.
        let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        net::bind(&socket, &netlink::SocketAddrNetlink::new(0, LINKS))?;
        let files = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let notices = Self { links: socket, files, libcni };
        notices.watch_folders();
        Ok(notices)
    }

    /// Wakes someone up at every notice, for ever: for a thread of its own.
    pub fn run(&self, dirty: &Coalescer) -> io::Result<Infallible> {
        loop {
            let mut news = [PollFd::new(&self.links, PollFlags::IN), PollFd::new(&self.files, PollFlags::IN)];
            match poll(&mut news, Some(&ANYWAY)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drain(|buffer| net::recv(&self.links, buffer, RecvFlags::DONTWAIT).map(|(length, _)| length))?;
            drain(|buffer| rustix::io::read(&self.files, buffer))?;
            self.watch_folders();
            dirty.notify();
        }
    }

    /// The folders of results come with the first pod. Watching twice is watching once.
    fn watch_folders(&self) {
        let written = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE;
        let folders = RESULTS.map(|folder| self.libcni.join(folder));
        let parents = folders.iter().filter_map(|folder| folder.parent());
        for folder in folders.iter().map(PathBuf::as_path).chain(parents) {
            if let Err(error) = inotify::add_watch(&self.files, folder, written)
                && error != Errno::NOENT
            {
                tracing::debug!(folder = %folder.display(), %error, "cannot watch this folder");
            }
        }
    }
}

/// Reads until there is nothing left. That some news were lost is news too.
fn drain(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match read(&mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
