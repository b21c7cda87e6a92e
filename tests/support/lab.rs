//! Network namespaces of a test's own, which go with it, and `ip` and `nft` inside them.

use ringfence::nft::exec::{Nft, NftError};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Begins the names of all namespaces of tests; the process id follows.
const PREFIX: &str = "rftest";
/// Where `ip` keeps namespaces by name.
const BY_NAME: &str = "/run/netns";

/// Whether these tests can run here. In continuous integration they must.
pub fn ready() -> bool {
    static SWEEP: Once = Once::new();
    match missing() {
        None => {
            SWEEP.call_once(sweep);
            true
        }
        Some(what) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "kernel tests need {what}");
            eprintln!("\n*** SKIPPED: kernel tests need {what}; NOTHING was tested ***\n");
            false
        }
    }
}

fn missing() -> Option<&'static str> {
    let runs = |program: &str, argument: &str| {
        Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !rustix::process::geteuid().is_root() {
        Some("root")
    } else if !runs("nft", "--version") {
        Some("nft (package nftables)")
    } else if !runs("ip", "-V") {
        Some("ip (package iproute2)")
    } else if !runs("conntrack", "--version") {
        Some("conntrack (package conntrack)")
    } else {
        None
    }
}

/// Deletes what killed test processes left.
fn sweep() {
    for entry in fs::read_dir(BY_NAME).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let (Some(PREFIX), Some(pid)) = (parts.next(), parts.next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            delete(&name);
        }
    }
}

fn delete(name: &str) {
    // Nothing depends on it: a name that stays is swept next time.
    let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status();
}

/// A network namespace. Dropping it deletes it, and with it the devices and tables inside.
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new namespace with loopback up.
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("{PREFIX}-{}-{count}-{role}", std::process::id()) };
        expect(&Command::new("ip").args(["netns", "add", &netns.name]).output().unwrap(), "ip netns add");
        // Addresses are usable at once: asking first whether someone else has them takes a second.
        for devices in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{devices}/accept_dad"), "0");
        }
        netns.ip("link set lo up");
        netns
    }

    /// Its name, as `ip` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new(BY_NAME).join(&self.name)
    }

    /// Does some work inside, on a thread of its own. Sockets made there belong to the namespace wherever they go.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            let link = File::open(self.path()).unwrap();
            move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs `ip` commands, one on each line.
    pub fn ip(&self, commands: &str) {
        let output = run(Command::new("ip").args(["-netns", &self.name, "-batch", "-"]), commands);
        expect(&output, commands);
    }

    /// Sets a kernel parameter, named like its file below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.enter(|| fs::write(Path::new("/proc/sys").join(key), format!("{value}\n")))
            .unwrap_or_else(|error| panic!("{key}: {error}"));
    }

    /// Makes conntrack forget every connection: `conntrack -F`.
    pub fn forget_connections(&self) {
        let output = self.enter(|| Command::new("conntrack").arg("--flush").output().unwrap());
        expect(&output, "conntrack --flush");
    }

    /// Commits a transaction as the agent does.
    pub fn commit(&self, script: &str) -> Result<(), NftError> {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        self.enter(|| runtime().block_on(Nft::default().commit(script)))
    }

    /// Commits transactions that the kernel must take.
    pub fn apply<'a>(&self, scripts: impl IntoIterator<Item = &'a str>) {
        for script in scripts {
            if let Err(error) = self.commit(script) {
                panic!("{error}\n--- of this script:\n{script}");
            }
        }
    }

    /// Runs `nft` with arguments, and returns what it prints.
    pub fn nft(&self, arguments: &[&str]) -> String {
        let output = self.enter(|| Command::new("nft").args(arguments).output().unwrap());
        expect(&output, &arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

fn run(command: &mut Command, input: &str) -> Output {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn expect(output: &Output, what: &str) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
