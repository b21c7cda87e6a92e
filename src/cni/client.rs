//! Asks the agent over its socket. The only part of the plugin that waits.

use super::message::{Answer, Request};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Between two attempts to reach an agent that is not there.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("the Ringfence agent on {} does not answer{}", .socket.display(), .error.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
pub struct Unanswered {
    socket: PathBuf,
    error: Option<std::io::Error>,
}

/// Asks, and waits until the deadline at most. With `again`, an agent that is away is asked when it is back.
pub fn ask(socket: &Path, request: Request, deadline: Instant, again: bool) -> Result<Answer, Unanswered> {
    let (attempts, results) = channel();
    let path = socket.to_owned();
    // A thread of its own, because there is no deadline for connecting. It ends with the program.
    std::thread::spawn(move || attempt(&path, &request, again, &attempts));
    let mut error = None;
    loop {
        match results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => error = Some(failure),
            // Late, or there are no more attempts.
            Err(_) => return Err(Unanswered { socket: socket.to_owned(), error }),
        }
    }
}

fn attempt(socket: &Path, request: &Request, again: bool, attempts: &Sender<std::io::Result<Answer>>) {
    loop {
        let answer = converse(socket, request);
        let answered = answer.is_ok();
        if attempts.send(answer).is_err() || answered || !again {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn converse(socket: &Path, request: &Request) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
