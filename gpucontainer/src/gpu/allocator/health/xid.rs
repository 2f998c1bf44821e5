//! What the driver's error reports, called XIDs, mean for a GPU.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What has to be done before a GPU that reported an XID can be trusted, after NVIDIA's catalogue of XIDs.
///
/// # References
/// <https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum XidAction {
    /// Nothing: it tells of something that was dealt with.
    Ignore,
    /// The application has to start again: its own fault, or one that reached nobody else.
    RestartApplication,
    /// The GPU has to be reset.
    ResetGpu,
    /// The machine has to be started again.
    RestartMachine,
    /// Somebody has to look at it: a code that the catalogue leaves to NVIDIA's support, or does not have.
    Inspect,
}

impl XidAction {
    /// The action for an XID, by its number.
    pub fn of(xid: u64) -> Self {
        match xid {
            // 43: a channel was reset after the fault of an application; 63: a row is to be replaced, which the
            // GPU's memory says itself; 92: many errors, all corrected; 121: the same of the link to the CPU.
            43 | 63 | 92 | 121 | 156 => Self::Ignore,
            // Exceptions of engines and of memory management, the removal of a channel, and a contained memory error.
            8 | 13 | 31 | 32 | 37 | 39..=42 | 45 | 59 | 68..=70 | 72 | 75..=77 | 80 | 82..=89 | 94 | 96..=108 | 137 => {
                Self::RestartApplication
            }
            // Engines or firmware that stopped, memory that is damaged beyond one application, links that broke.
            44
            | 46
            | 48
            | 61
            | 62
            | 64
            | 66
            | 67
            | 71
            | 73
            | 74
            | 81
            | 95
            | 109
            | 110
            | 119
            | 120
            | 140
            | 143..=150
            | 155
            | 158 => Self::ResetGpu,
            // Fallen off the bus.
            79 => Self::RestartMachine,
            _ => Self::Inspect,
        }
    }

    /// Whether a GPU is kept from new leases for it.
    pub fn quarantines(self) -> bool {
        !matches!(self, Self::Ignore | Self::RestartApplication)
    }
}

impl fmt::Display for XidAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignore => "nothing to be done",
            Self::RestartApplication => "the application has to start again",
            Self::ResetGpu => "the GPU has to be reset",
            Self::RestartMachine => "the machine has to be started again",
            Self::Inspect => "somebody has to look at it",
        })
    }
}

/// An XID in the kernel's log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LoggedXid {
    /// Domain, bus and device, as in `0000:07:00`.
    pub(crate) address: String,
    pub(crate) number: u64,
    /// On the clock of the kernel's log.
    pub(crate) microseconds: u64,
}

/// Reads a record of `/dev/kmsg`: `4,1234,98765432,-;NVRM: Xid (PCI:0000:07:00): 79, pid=…`.
pub(crate) fn logged(record: &str) -> Option<LoggedXid> {
    let (prefix, message) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    // The low three bits are the level, the others who wrote it: 0 is the kernel, and nobody else may say so.
    let from_kernel = fields.next()?.parse::<u64>().is_ok_and(|priority| priority >> 3 == 0);
    let microseconds = fields.nth(1)?.parse().ok()?;
    let (address, rest) = message.strip_prefix("NVRM: Xid (PCI:")?.split_once("): ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    from_kernel.then_some(LoggedXid {
        address: address.to_ascii_lowercase(),
        number: digits.parse().ok()?,
        microseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_follow_the_catalogue() {
        use XidAction::{Ignore, Inspect, ResetGpu, RestartApplication, RestartMachine};
        let table = [
            (13, RestartApplication),
            (31, RestartApplication),
            (43, Ignore),
            (45, RestartApplication),
            (48, ResetGpu),
            (63, Ignore),
            (64, ResetGpu),
            (74, ResetGpu),
            (79, RestartMachine),
            (94, RestartApplication),
            (95, ResetGpu),
            (109, ResetGpu),
            (119, ResetGpu),
            (120, ResetGpu),
            (2, Inspect),
            (u64::MAX, Inspect),
        ];
        for (xid, action) in table {
            assert_eq!(XidAction::of(xid), action, "{xid}");
            assert_eq!(action.quarantines(), !matches!(action, Ignore | RestartApplication), "{xid}");
        }
    }

    #[test]
    fn the_kernel_s_log_is_read_and_only_the_kernel_is_believed() {
        let read = |record: &str| logged(record).map(|xid| (xid.address, xid.number, xid.microseconds));
        let fallen =
            "4,1234,98765432,-;NVRM: Xid (PCI:0000:C7:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen";
        assert_eq!(read(fallen), Some(("0000:c7:00".into(), 79, 98_765_432)));
        assert_eq!(read("4,1,5,-,caller=T1;NVRM: Xid (PCI:0000:07:00): 13"), Some(("0000:07:00".into(), 13, 5)));
        for other in [
            // `logger` and systemd write with a facility of their own.
            "12,1,5,-;NVRM: Xid (PCI:0000:07:00): 79, pid=1",
            "4,1,5,-;x NVRM: Xid (PCI:0000:07:00): 79",
            "4,1,5,-;NVRM: Xid (PCI:0000:07:00): none",
            "4,1,x,-;NVRM: Xid (PCI:0000:07:00): 79",
            "4;NVRM: Xid (PCI:0000:07:00): 79",
            " SUBSYSTEM=pci",
            "",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
