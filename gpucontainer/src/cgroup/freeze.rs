//! Holding a group still, and letting it go.

use super::leaf::Leaf;
use super::{Cgroup, abandoned, foreign};
use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::{cgroup as files, fs};
use cgroups_rs::freezer::{FreezerController, FreezerState};
use std::io::{Read, Seek};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

impl Cgroup {
    /// Stops everything inside where it is, and returns when it stands still. Doing so twice is no error.
    ///
    /// In version 1 hierarchies the group enters the freezer at the first call, which takes some 10 ms;
    /// that way no start has to pay for it.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if something does not stand still 10 s later (it hangs inside a system call);
    /// then all is let go again. [`ErrorKind::Unsupported`] if the host has no freezer for this group.
    pub fn freeze(&self) -> Result<()> {
        let wanted = || format!("freeze control group {:?}", self.name());
        let deadline = Instant::now() + abandoned::PATIENCE;
        let freezer = self.freezer().with_context(wanted)?;
        self.hold(freezer.leaf()).with_context(wanted)?;
        let frozen = match freezer {
            Freezer::Unified(leaf) => {
                leaf.write("cgroup.freeze", "1").with_context(wanted)?;
                self.move_into(&leaf).and_then(|()| wait_unified(&leaf, true, deadline))
            }
            Freezer::Own(leaf) => {
                let controller = FreezerController::new(leaf.path.clone(), false);
                controller.freeze().map_err(|e| foreign::error("freeze", e)).with_context(wanted)?;
                // What enters a frozen group stands still from then on, so all are caught one by one.
                self.move_into(&leaf).and_then(|()| wait_own(&controller, true, deadline))
            }
        };
        frozen.inspect_err(|_| drop(self.thaw())).with_context(wanted)
    }

    /// Lets everything inside go on. What is not frozen is no error.
    ///
    /// # Errors
    /// Those of writing to the kernel, and [`ErrorKind::TimedOut`] if it does not obey in 10 s.
    pub fn thaw(&self) -> Result<()> {
        let wanted = || format!("thaw control group {:?}", self.name());
        let deadline = Instant::now() + abandoned::PATIENCE;
        let result = match self.freezer_at_hand() {
            Some(Freezer::Unified(leaf)) => {
                leaf.write("cgroup.freeze", "0").and_then(|()| wait_unified(&leaf, false, deadline))
            }
            Some(Freezer::Own(leaf)) => {
                let controller = FreezerController::new(leaf.path.clone(), false);
                let thawed = controller.thaw().map_err(|e| foreign::error("thaw", e));
                thawed.and_then(|()| wait_own(&controller, false, deadline))
            }
            None => Ok(()),
        };
        result.and_then(|()| self.let_go()).with_context(wanted)
    }

    /// Claims that this process holds the group still, if the group is its own.
    fn hold(&self, freezer: &Leaf) -> Result<()> {
        let Some(claim) = &self.claim else { return Ok(()) };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(abandoned::take_held(claim.directory(), self.name(), &freezer.path)?);
        }
        Ok(())
    }

    /// Gives that claim up.
    pub(super) fn let_go(&self) -> Result<()> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map_or(Ok(()), Claim::release)
    }

    /// Whether everything inside stands still.
    ///
    /// # Errors
    /// Those of reading from the kernel.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.freezer_at_hand() {
            Some(Freezer::Unified(leaf)) => Ok(is_frozen(&leaf.read("cgroup.events")?)),
            Some(Freezer::Own(leaf)) => Ok(leaf.read("freezer.state")?.trim() == "FROZEN"),
            None => Ok(false),
        }
    }

    /// The freezer that all processes of the group are in.
    fn freezer_at_hand(&self) -> Option<Freezer> {
        match self.leaf("") {
            Some(leaf) => Some(Freezer::Unified(leaf)),
            None => self.leaf("freezer").map(Freezer::Own),
        }
    }

    fn freezer(&self) -> Result<Freezer> {
        if let Some(freezer) = self.freezer_at_hand() {
            return Ok(freezer);
        }
        match self.make_late("freezer") {
            Ok(leaf) => Ok(Freezer::Own(leaf)),
            // A hierarchy of version 2 without any controller can still freeze.
            Err(first) => self.make_late("").map(Freezer::Unified).map_err(|_| first.with_kind(ErrorKind::Unsupported)),
        }
    }
}

/// What can hold a group still.
#[derive(Debug)]
enum Freezer {
    /// Every group of version 2.
    Unified(Arc<Leaf>),
    /// A hierarchy of version 1.
    Own(Arc<Leaf>),
}

impl Freezer {
    fn leaf(&self) -> &Leaf {
        match self {
            Self::Unified(leaf) | Self::Own(leaf) => leaf,
        }
    }
}

fn is_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// Waits until the kernel says that all is frozen, or not; it tells when the file changes.
fn wait_unified(leaf: &Leaf, frozen: bool, deadline: Instant) -> Result<()> {
    let path = leaf.path.join("cgroup.events");
    let mut file = fs::open(&path)?;
    loop {
        let mut text = String::new();
        file.rewind()
            .and_then(|()| file.read_to_string(&mut text))
            .map_err(|e| Error::from_io(format!("read({path:?})"), e))?;
        if is_frozen(&text) == frozen {
            return Ok(());
        }
        files::wait_for_change(&file, remaining(deadline)?)?;
    }
}

/// Waits until the freezer of version 1 says that all is frozen, or not. It does not tell when: it is asked again
/// and again, at most every 5 ms.
fn wait_own(controller: &FreezerController, frozen: bool, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let state = controller.state().map_err(|e| foreign::error("read freezer.state", e))?;
        if matches!((state, frozen), (FreezerState::Frozen, true) | (FreezerState::Thawed, false)) {
            return Ok(());
        }
        remaining(deadline)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn remaining(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::new(
            ErrorKind::TimedOut,
            "something inside does not obey; it may hang inside a system call",
        ));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::is_frozen;

    #[test]
    fn only_the_whole_word_counts() {
        assert!(is_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_frozen("populated 1\nfrozen 0\n") && !is_frozen("populated 0\n") && !is_frozen(""));
    }
}
