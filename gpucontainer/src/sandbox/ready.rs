//! Waiting until a program inside serves.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::{PortMode, Protocol};
use crate::sandbox::Sandbox;
use crate::sys::socket::number;
use std::time::{Duration, Instant};

/// The pause after the first attempt; each is twice as long as the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Short enough that nobody notices, and long enough to cost nothing.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long a server may take to answer one attempt: its queue may be full, and nothing else is looked at meanwhile.
const ATTEMPT: Duration = Duration::from_millis(100);

impl Sandbox {
    /// Waits until something accepts connections at a TCP port inside, published or not, by connecting to it and closing
    /// that at once. `None` waits as long as the application runs.
    ///
    /// A port that is [handed over](PortMode::HandOver) takes clients before the program looks for them, so nothing is
    /// waited for there. In the host's network any server of the host's does.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] as soon as the application has ended, [`ErrorKind::TimedOut`] after `timeout`,
    /// [`ErrorKind::InvalidArgument`] for port 0; [`Error::errno`] is `EINTR` when a signal handler of the host ran
    /// meanwhile, and calling again goes on.
    pub fn wait_ready(&self, port: u16, timeout: Option<Duration>) -> Result<()> {
        self.await_server(port, timeout).with_context(|| format!("wait for port {port} of sandbox {}", self.name()))
    }

    fn await_server(&self, port: u16, timeout: Option<Duration>) -> Result<()> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
            let within = |most: Duration| left.map_or(most, |left| left.min(most));
            let refusal = match self.dial(port, Some(within(ATTEMPT).max(FIRST_PAUSE))) {
                Ok(_) => return Ok(()),
                Err(refusal) => refusal,
            };
            // Wakes at once when the application ends.
            if let Some(status) = self.wait_timeout(within(pause))? {
                let message = format!("the application ended before anything accepted connections: {status}");
                return Err(Error::new(ErrorKind::Closed, message));
            }
            if self.is_handed_over(port) {
                return Ok(());
            }
            if !is_not_yet(&refusal) {
                return Err(refusal);
            }
            if left == Some(Duration::ZERO) {
                let message = format!("nothing accepted connections in time; the last attempt: {refusal}");
                return Err(Error::new(ErrorKind::TimedOut, message));
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn is_handed_over(&self, port: u16) -> bool {
        let handed = |status: &crate::net::PortStatus| {
            let first = status.port.container_port();
            let covers = (first..=first.saturating_add(status.port.count() - 1)).contains(&port);
            status.mode == PortMode::HandOver && status.port.protocol() == Protocol::Tcp && covers
        };
        self.port_status().iter().any(handed)
    }
}

/// Whether a server may still come after this error: nobody listens, its queue is full, or the application is just ending.
fn is_not_yet(error: &Error) -> bool {
    use number::{EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, ECONNRESET, ESRCH};
    error.kind() == ErrorKind::TimedOut
        || matches!(error.errno(), Some(ECONNREFUSED | ECONNRESET | EADDRNOTAVAIL | EAFNOSUPPORT | ESRCH))
}
