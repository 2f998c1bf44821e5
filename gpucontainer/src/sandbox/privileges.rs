//! The capabilities that an application may have, and the resources of a process that can be limited.

/// A resource of a process that can be limited, as in `setrlimit(2)`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ResourceLimit {
    /// Bytes of address space.
    As,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of the data segment.
    Data,
    /// Bytes of a file that is written.
    Fsize,
    /// Bytes of locked memory.
    Memlock,
    /// Bytes of message queues.
    Msgqueue,
    /// Open descriptors.
    Nofile,
    /// Processes and threads of the user, over all of the host.
    Nproc,
    /// Bytes of stack.
    Stack,
}

impl ResourceLimit {
    /// The name and the kernel's number.
    pub(crate) fn kernel(self) -> (&'static str, u32) {
        match self {
            Self::Cpu => ("cpu", 0),
            Self::Fsize => ("fsize", 1),
            Self::Data => ("data", 2),
            Self::Stack => ("stack", 3),
            Self::Core => ("core", 4),
            Self::Nproc => ("nproc", 6),
            Self::Nofile => ("nofile", 7),
            Self::Memlock => ("memlock", 8),
            Self::As => ("as", 9),
            Self::Msgqueue => ("msgqueue", 12),
        }
    }
}

/// What ordinary programs of images need as root, and no more: no raw sockets, no device nodes, no audit records.
pub(crate) const DEFAULT_CAPABILITIES: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setuid,
    Capability::SysChroot,
];

macro_rules! capabilities {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// A capability of `capabilities(7)`.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Capability {
            $(#[doc = concat!("`", $text, "`")] $name = $number,)*
        }

        impl Capability {
            /// Finds a capability by its name, with or without `CAP_`, in upper or lower case.
            pub fn from_name(name: &str) -> Option<Self> {
                let name = name.to_ascii_uppercase();
                let full = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
                match full.as_str() {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

capabilities! {
    Chown = 0, "CAP_CHOWN";
    DacOverride = 1, "CAP_DAC_OVERRIDE";
    DacReadSearch = 2, "CAP_DAC_READ_SEARCH";
    Fowner = 3, "CAP_FOWNER";
    Fsetid = 4, "CAP_FSETID";
    Kill = 5, "CAP_KILL";
    Setgid = 6, "CAP_SETGID";
    Setuid = 7, "CAP_SETUID";
    Setpcap = 8, "CAP_SETPCAP";
    LinuxImmutable = 9, "CAP_LINUX_IMMUTABLE";
    NetBindService = 10, "CAP_NET_BIND_SERVICE";
    NetBroadcast = 11, "CAP_NET_BROADCAST";
    NetAdmin = 12, "CAP_NET_ADMIN";
    NetRaw = 13, "CAP_NET_RAW";
    IpcLock = 14, "CAP_IPC_LOCK";
    IpcOwner = 15, "CAP_IPC_OWNER";
    SysModule = 16, "CAP_SYS_MODULE";
    SysRawio = 17, "CAP_SYS_RAWIO";
    SysChroot = 18, "CAP_SYS_CHROOT";
    SysPtrace = 19, "CAP_SYS_PTRACE";
    SysPacct = 20, "CAP_SYS_PACCT";
    SysAdmin = 21, "CAP_SYS_ADMIN";
    SysBoot = 22, "CAP_SYS_BOOT";
    SysNice = 23, "CAP_SYS_NICE";
    SysResource = 24, "CAP_SYS_RESOURCE";
    SysTime = 25, "CAP_SYS_TIME";
    SysTtyConfig = 26, "CAP_SYS_TTY_CONFIG";
    Mknod = 27, "CAP_MKNOD";
    Lease = 28, "CAP_LEASE";
    AuditWrite = 29, "CAP_AUDIT_WRITE";
    AuditControl = 30, "CAP_AUDIT_CONTROL";
    Setfcap = 31, "CAP_SETFCAP";
    MacOverride = 32, "CAP_MAC_OVERRIDE";
    MacAdmin = 33, "CAP_MAC_ADMIN";
    Syslog = 34, "CAP_SYSLOG";
    WakeAlarm = 35, "CAP_WAKE_ALARM";
    BlockSuspend = 36, "CAP_BLOCK_SUSPEND";
    AuditRead = 37, "CAP_AUDIT_READ";
    Perfmon = 38, "CAP_PERFMON";
    Bpf = 39, "CAP_BPF";
    CheckpointRestore = 40, "CAP_CHECKPOINT_RESTORE";
}

impl Capability {
    pub(crate) fn bit(self) -> u64 {
        1 << (self as u8)
    }
}
