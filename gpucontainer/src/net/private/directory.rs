//! What the processes of a host know of its private networks.
//!
//! ```text
//! /run/gpucontainer/networks/            root; $XDG_RUNTIME_DIR/gpucontainer/networks/ others
//!   .making.lock      held while a network gets its addresses
//!   <name>/           of the host's network namespace; <name>@<number> of another one, where it is a "host" itself
//!     lock            held while members come and go
//!     network         what the living network is: its addresses, its settings, its sockets
//!     <address>.claim held by a member: its names, and who has the sockets open
//!     hosts           the names of all, mounted into each sandbox
//! ```
//! All of it is on a file system in memory, and nothing is true of it when no claim is held.

use super::switch::Switch;
use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::lock::{Lock, Mode};
use crate::sys::netlink::{Netlink, Protocol};
use crate::sys::{fs, process};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The cookie of the network namespace that the system began with.
const FIRST_NAMESPACE: u64 = 1;
const CLAIM: &str = ".claim";
const NETWORK: &str = "network";
pub(super) const HOSTS: &str = "hosts";

/// The directory of one network, locked.
#[derive(Debug)]
pub(super) struct Directory {
    lock: Lock,
    path: PathBuf,
}

/// A member as its claim says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Living {
    /// Its number in the network.
    pub(super) number: u32,
    /// What it is called; the first is the one that nobody else has.
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) holders: Vec<Holder>,
}

/// Where a process has the sockets of the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) switch: i32,
    pub(super) rules: Option<i32>,
}

impl Directory {
    /// Locks the directory of the network called `name` of the host that the caller is on; makes it if it is not there.
    pub(super) fn enter(name: &str) -> Result<Self> {
        Self::at(Self::path_of(name)?)
    }

    /// Where that is.
    pub(super) fn path_of(name: &str) -> Result<PathBuf> {
        Ok(base()?.join(file_name(name)?))
    }

    /// Locks the directory of a network; makes it if it is not there.
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        loop {
            fs::create_dir_all(&path)?;
            // Others could hold locks on files that they can read, and so keep addresses from their next owners.
            match fs::set_mode(&path, 0o700) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other?,
            }
            match Lock::wait(&path.join("lock"), Mode::Exclusive) {
                Ok(lock) => return Ok(Self { lock, path }),
                // The last member has just removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the hosts file is.
    pub(super) fn hosts(&self) -> PathBuf {
        self.path.join(HOSTS)
    }

    /// The members that live; the claims of the dead are removed.
    pub(super) fn living(&self) -> Result<Vec<Living>> {
        for dead in Claim::abandoned(&self.path)? {
            dead.release()?;
        }
        let entries = fs::read_dir(&self.path)?;
        let claims = entries.iter().filter(|path| path.to_str().is_some_and(|path| path.ends_with(CLAIM)));
        let mut living = Vec::new();
        for path in claims {
            match fs::read_to_string(path) {
                Ok(text) => living.push(Living::parse(&text)),
                // Its sandbox has ended meanwhile; only what is written holds the lock.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        living.sort_by_key(|member| member.number);
        Ok(living)
    }

    /// Claims an address for a member.
    pub(super) fn claim(&self, member: &Living) -> Result<Claim> {
        let address = member.addresses.first().map(ToString::to_string).unwrap_or_default();
        Claim::take(&self.path, &address, member.to_string().as_bytes())
    }

    /// What is written of the network.
    pub(super) fn network(&self) -> Result<String> {
        fs::read_to_string(&self.path.join(NETWORK))
    }

    /// Writes down what the network is.
    pub(super) fn set_network(&self, text: &str) -> Result<()> {
        let new = self.path.join("network.new");
        fs::write(&new, text.as_bytes())?;
        fs::rename(&new, &self.path.join(NETWORK))
    }

    /// Writes the hosts file in place: it is mounted in sandboxes.
    pub(super) fn set_hosts(&self, text: &str) -> Result<()> {
        let path = self.hosts();
        let failed = |e| Error::from_io(format!("write({path:?})"), e).with_path(&path);
        let file = match fs::open_read_write(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => fs::create_new(&path)?,
            other => other?.into(),
        };
        fs::set_mode(&path, 0o644)?;
        // Who reads meanwhile finds lines, not less than before; only then is the rest cut off.
        let mut bytes = text.as_bytes().to_vec();
        let before = usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or_default();
        bytes.resize(bytes.len().max(before), b'\n');
        file.write_all_at(&bytes, 0).map_err(failed)?;
        file.set_len(text.len() as u64).map_err(failed)
    }

    /// Takes the sockets of the living network from whoever has them.
    pub(super) fn find(&self, living: &[Living], cookies: (u64, Option<u64>)) -> Result<Switch> {
        for holder in living.iter().flat_map(|member| &member.holders) {
            let switch = taken(holder.pid, holder.switch, cookies.0);
            let rules = match (cookies.1, holder.rules) {
                (Some(cookie), Some(number)) => taken(holder.pid, number, cookie).map(Some),
                (None, _) => Some(None),
                (Some(_), None) => None,
            };
            if let (Some(route), Some(rules)) = (switch, rules) {
                return Ok(Switch { route, rules });
            }
        }
        let pids: Vec<u32> = living.iter().flat_map(|member| &member.holders).map(|holder| holder.pid).collect();
        let message = format!("no socket of the network could be taken from the processes that have it ({pids:?})");
        Err(Error::new(ErrorKind::Busy, message))
    }

    /// Removes all of it: the last member is gone.
    pub(super) fn remove(self) -> Result<()> {
        for name in [NETWORK, "network.new", HOSTS] {
            gone(fs::remove_file(&self.path.join(name)))?;
        }
        let path = self.path;
        self.lock.remove()?;
        // Somebody may have come meanwhile.
        let _ = fs::remove_dir(&path);
        Ok(())
    }

    /// Lets others in, at once, whoever has copies of the lock's descriptor.
    pub(super) fn leave(self) -> Result<()> {
        self.lock.free()
    }

    /// Keeps the caller alone with all networks of the user, where one gets its addresses.
    pub(super) fn making(&self) -> Result<Lock> {
        let base = self.path.parent().unwrap_or_else(|| Path::new("/"));
        Lock::wait(&base.join(".making.lock"), Mode::Exclusive)
    }

    /// Removes what dead networks left, of other names than this one.
    pub(super) fn sweep(&self) -> Result<()> {
        let base = self.path.parent().unwrap_or_else(|| Path::new("/"));
        for path in fs::read_dir(base)?.into_iter().filter(|path| *path != self.path) {
            if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                continue;
            }
            // One that is locked has somebody who looks after it.
            let lock = match Lock::try_take(&path.join("lock"), Mode::Exclusive) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other?,
            };
            if let Some(lock) = lock {
                let other = Self { lock, path };
                if other.living()?.is_empty() {
                    other.remove()?;
                } else {
                    other.leave()?;
                }
            }
        }
        Ok(())
    }
}

impl Living {
    fn parse(text: &str) -> Self {
        let mut member = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next() {
                Some("number") => member.number = words.next().and_then(|word| word.parse().ok()).unwrap_or_default(),
                Some("names") => member.names = words.map(str::to_owned).collect(),
                Some("addresses") => member.addresses = words.filter_map(|word| word.parse().ok()).collect(),
                Some("holder") => member.holders.extend(Holder::parse(words)),
                _ => {}
            }
        }
        member
    }
}

impl std::fmt::Display for Living {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        writeln!(f, "number {}\nnames {}\naddresses {}", self.number, self.names.join(" "), addresses.join(" "))?;
        self.holders.iter().try_for_each(|holder| write!(f, "{holder}"))
    }
}

impl Holder {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut word = || words.next();
        let (pid, switch, rules, end) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?, word()?);
        // A line that is just being written has no end.
        (end == ".").then(|| Self { pid, switch, rules: rules.parse().ok() })
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rules = self.rules.map_or("-".to_owned(), |number| number.to_string());
        writeln!(f, "holder {} {} {rules} .", self.pid, self.switch)
    }
}

/// The socket that a process has under a number, if it is the one with this cookie.
fn taken(pid: u32, number: i32, cookie: u64) -> Option<Netlink> {
    let socket = Netlink::adopt(process::take_descriptor(pid, number).ok()?).ok()?;
    socket.cookie().is_ok_and(|found| found == cookie).then_some(socket)
}

/// Where the networks of the caller are.
fn base() -> Result<PathBuf> {
    let run = Path::new("/run");
    if fs::is_root_user() && fs::writable(run) {
        return Ok(run.join("gpucontainer/networks"));
    }
    let runtime = fs::path_from_environment("XDG_RUNTIME_DIR").filter(|path| path.is_absolute());
    runtime.map(|path| path.join("gpucontainer/networks")).ok_or_else(|| {
        let message = "no directory for private networks: /run is not writable, and XDG_RUNTIME_DIR is not set";
        Error::new(ErrorKind::Unsupported, message)
    })
}

/// The name of a network's directory: what is a host may itself be a container with a network of its own.
fn file_name(name: &str) -> Result<String> {
    let cookie = Netlink::open(Protocol::Route)?.namespace_cookie().context("tell the host's network namespace")?;
    Ok(if cookie == FIRST_NAMESPACE { name.to_owned() } else { format!("{name}@{cookie}") })
}

/// Takes it for done where nothing was there.
fn gone(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_read_as_it_was_written() {
        let member = Living {
            number: 7,
            names: vec!["web".into(), "w".into()],
            addresses: vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            holders: vec![Holder { pid: 12, switch: 5, rules: Some(6) }, Holder { pid: 13, switch: 5, rules: None }],
        };
        let text = member.to_string();
        assert_eq!(Living::parse(&text), member);
        // Cut anywhere, it has what is there, and no number that is none.
        for length in 0..text.len() {
            let cut = Living::parse(&text[..length]);
            assert!(member.holders.starts_with(&cut.holders), "{:?}", &text[..length]);
        }
    }
}
