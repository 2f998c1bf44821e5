//! Filters in the kernel: what they refuse, and that real programs run under them.
//!
//! A filter stays for ever, so each test runs this very binary again and filters that.

#![allow(unsafe_code, reason = "the tests make system calls that nothing wraps, with arguments that make no sense")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is test code, outside of a test function")]

mod common;

use gpucontainer::seccomp::{Action, Architecture, Profile, Rule};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};

const CHILD: &str = "GPUC_TEST_SECCOMP_CHILD";
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// The number by which this machine's C library crate knows a call, for each call it knows.
macro_rules! numbers {
    ($($name:ident)*) => { [$((stringify!($name).trim_start_matches("SYS_"), libc::$name)),*] };
}

#[test]
#[cfg(target_arch = "x86_64")]
fn numbers_are_those_of_the_c_library() {
    #[rustfmt::skip]
    let known = numbers!(
        SYS__sysctl SYS_accept SYS_accept4 SYS_access SYS_acct SYS_add_key SYS_adjtimex SYS_afs_syscall SYS_alarm
        SYS_arch_prctl SYS_bind SYS_bpf SYS_brk SYS_capget SYS_capset SYS_chdir SYS_chmod SYS_chown SYS_chroot
        SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_clock_settime SYS_clone
        SYS_clone3 SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_creat SYS_delete_module SYS_dup
        SYS_dup2 SYS_dup3 SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_ctl_old SYS_epoll_pwait
        SYS_epoll_pwait2 SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_eventfd2 SYS_execve SYS_execveat SYS_exit
        SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_init SYS_fanotify_mark
        SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr
        SYS_finit_module SYS_flistxattr SYS_flock SYS_fork SYS_fremovexattr SYS_fsconfig SYS_fsetxattr SYS_fsmount
        SYS_fsopen SYS_fspick SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_futimesat
        SYS_get_mempolicy SYS_get_robust_list SYS_get_thread_area SYS_getcpu SYS_getcwd SYS_getdents SYS_getdents64
        SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpgrp
        SYS_getpid SYS_getpmsg SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit
        SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr
        SYS_init_module SYS_inotify_add_watch SYS_inotify_init SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel
        SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit SYS_io_uring_enter SYS_io_uring_register
        SYS_io_uring_setup SYS_ioctl SYS_ioperm SYS_iopl SYS_ioprio_get SYS_ioprio_set SYS_kcmp SYS_kexec_file_load
        SYS_kexec_load SYS_keyctl SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
        SYS_landlock_restrict_self SYS_lchown SYS_lgetxattr SYS_link SYS_linkat SYS_listen SYS_listxattr
        SYS_llistxattr SYS_lookup_dcookie SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_lstat SYS_madvise SYS_mbind
        SYS_membarrier SYS_memfd_create SYS_memfd_secret SYS_migrate_pages SYS_mincore SYS_mkdir SYS_mkdirat SYS_mknod
        SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_modify_ldt SYS_mount SYS_mount_setattr
        SYS_move_mount SYS_move_pages SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive
        SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync
        SYS_munlock SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_nfsservctl
        SYS_open SYS_open_by_handle_at SYS_open_tree SYS_openat SYS_openat2 SYS_pause SYS_perf_event_open
        SYS_personality SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe SYS_pipe2 SYS_pivot_root
        SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_poll SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2
        SYS_prlimit64 SYS_process_madvise SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6
        SYS_ptrace SYS_putpmsg SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_quotactl SYS_quotactl_fd SYS_read
        SYS_readahead SYS_readlink SYS_readlinkat SYS_readv SYS_reboot SYS_recvfrom SYS_recvmmsg SYS_recvmsg
        SYS_remap_file_pages SYS_removexattr SYS_rename SYS_renameat SYS_renameat2 SYS_request_key SYS_restart_syscall
        SYS_rmdir SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn
        SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max
        SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
        SYS_sched_yield SYS_seccomp SYS_security SYS_select SYS_semctl SYS_semget SYS_semop SYS_semtimedop
        SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_mempolicy SYS_set_mempolicy_home_node
        SYS_set_robust_list SYS_set_thread_area SYS_set_tid_address SYS_setdomainname SYS_setfsgid SYS_setfsuid
        SYS_setgid SYS_setgroups SYS_sethostname SYS_setitimer SYS_setns SYS_setpgid SYS_setpriority SYS_setregid
        SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt SYS_settimeofday SYS_setuid
        SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd SYS_signalfd4
        SYS_socket SYS_socketpair SYS_splice SYS_stat SYS_statfs SYS_statx SYS_swapoff SYS_swapon SYS_symlink
        SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysfs SYS_sysinfo SYS_syslog SYS_tee SYS_tgkill
        SYS_time SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
        SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_tuxcall
        SYS_umask SYS_umount2 SYS_uname SYS_unlink SYS_unlinkat SYS_unshare SYS_uselib SYS_userfaultfd SYS_ustat
        SYS_utime SYS_utimensat SYS_utimes SYS_vfork SYS_vhangup SYS_vmsplice SYS_vserver SYS_wait4 SYS_waitid
        SYS_write SYS_writev
    );
    assert_numbers(Architecture::X86_64, &known);
}

#[test]
#[cfg(target_arch = "aarch64")]
fn numbers_are_those_of_the_c_library() {
    #[rustfmt::skip]
    let known = numbers!(
        SYS_accept SYS_accept4 SYS_acct SYS_add_key SYS_adjtimex SYS_bind SYS_bpf SYS_brk SYS_capget SYS_capset
        SYS_chdir SYS_chroot SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep
        SYS_clock_settime SYS_clone SYS_clone3 SYS_close SYS_close_range SYS_connect SYS_copy_file_range
        SYS_delete_module SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
        SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64
        SYS_fallocate SYS_fanotify_init SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat
        SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_finit_module SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsconfig
        SYS_fsetxattr SYS_fsmount SYS_fsopen SYS_fspick SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex
        SYS_futex_waitv SYS_get_mempolicy SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid
        SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid
        SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid SYS_getsockname
        SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_init_module SYS_inotify_add_watch
        SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup
        SYS_io_submit SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup SYS_ioctl SYS_ioprio_get
        SYS_ioprio_set SYS_kcmp SYS_kexec_file_load SYS_kexec_load SYS_keyctl SYS_kill SYS_landlock_add_rule
        SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr
        SYS_llistxattr SYS_lookup_dcookie SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_mbind
        SYS_membarrier SYS_memfd_create SYS_memfd_secret SYS_migrate_pages SYS_mincore SYS_mkdirat SYS_mknodat
        SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages
        SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink
        SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall
        SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_nfsservctl SYS_open_by_handle_at
        SYS_open_tree SYS_openat SYS_openat2 SYS_perf_event_open SYS_personality SYS_pidfd_getfd SYS_pidfd_open
        SYS_pidfd_send_signal SYS_pipe2 SYS_pivot_root SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll
        SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_madvise SYS_process_mrelease
        SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2
        SYS_quotactl SYS_quotactl_fd SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_reboot SYS_recvfrom
        SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat2 SYS_request_key
        SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo
        SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max
        SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
        SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg
        SYS_sendmsg SYS_sendto SYS_set_mempolicy SYS_set_mempolicy_home_node SYS_set_robust_list SYS_set_tid_address
        SYS_setdomainname SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_sethostname SYS_setitimer SYS_setns
        SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid SYS_setsockopt
        SYS_settimeofday SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
        SYS_sigaltstack SYS_signalfd4 SYS_socket SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_swapoff SYS_swapon
        SYS_symlinkat SYS_sync SYS_syncfs SYS_sysinfo SYS_syslog SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
        SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime
        SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_umount2 SYS_uname SYS_unlinkat SYS_unshare
        SYS_userfaultfd SYS_utimensat SYS_vhangup SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    );
    assert_numbers(Architecture::Aarch64, &known);
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn assert_numbers(architecture: Architecture, known: &[(&str, libc::c_long)]) {
    assert_eq!(Architecture::NATIVE, Some(architecture));
    for &(name, number) in known {
        assert_eq!(architecture.number(name).map(libc::c_long::from), Some(number), "{name}");
    }
}

/// Makes a call whatever its arguments mean; the error number if it fails.
fn call(number: u32, arguments: [u64; 4]) -> Result<i64, i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: the callers below pass numbers and null pointers, with which no call touches memory of
    // this process.
    let result = unsafe { libc::syscall(libc::c_long::from(number), a, b, c, d) };
    if result == -1 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
    }
    Ok(result)
}

/// Runs this binary again as the child that `case` names.
fn child(case: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child", "--nocapture", "--test-threads=1"])
        .env(CHILD, case)
        .output()
        .unwrap()
}

fn lines(case: &str) -> Vec<String> {
    let output = child(case);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{case}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|line| line.split("ANSWER ").nth(1)).map(str::to_owned).collect()
}

/// What a child does; does nothing when the harness runs it as a test.
#[test]
fn the_child() {
    let Ok(case) = std::env::var(CHILD) else { return };
    let filter = |profile: Profile| profile.compile().unwrap().apply_to_current_thread().unwrap();
    let (case, rest) = case.split_once(' ').unwrap_or((&case, ""));
    match case {
        "calls-unfiltered" => answers(),
        "calls" => {
            filter(Profile::default_for(0));
            answers();
        }
        "calls-with-every-capability" => {
            filter(Profile::default_for(u64::MAX));
            answers();
        }
        "run" => {
            filter(Profile::default_for(0));
            panic!("{}", Command::new("sh").args(["-c", rest]).exec());
        }
        "kill" => {
            filter(Profile::allow_all().rule(Rule::new(Action::KillProcess, ["getpgid"])));
            let _ = call(number("getpgid"), [0; 4]);
        }
        "32-bit-unfiltered" => thirty_two_bit(),
        "32-bit" => {
            filter(Profile::default_for(0));
            thirty_two_bit();
        }
        "32-bit-allowed" => {
            filter(Profile::default_for(0).architecture(Architecture::X86));
            thirty_two_bit();
        }
        other => panic!("no case {other}"),
    }
}

fn number(name: &str) -> u32 {
    Architecture::NATIVE.unwrap().number(name).unwrap_or_else(|| panic!("{name}"))
}

/// Calls with what they answer under the default filter, none of which does anything if it is let through.
/// `None`: anything but `EPERM` and `ENOSYS`.
fn calls() -> Vec<(&'static str, u32, [u64; 4], Option<i32>)> {
    let mut calls: Vec<_> = [
        ("mount", [0; 4], Some(EPERM)),
        ("umount2", [0; 4], Some(EPERM)),
        ("pivot_root", [0; 4], Some(EPERM)),
        ("fsopen", [0, 0xffff, 0, 0], Some(EPERM)),
        ("open_tree", [0, 0, 0xffff_ffff, 0], Some(EPERM)),
        ("move_mount", [0, 0, 0, 0], Some(EPERM)),
        ("unshare", [0x1000_0000 | 1 << 40, 0, 0, 0], Some(EPERM)),
        ("unshare", [0x80 | 1 << 40, 0, 0, 0], Some(EPERM)),
        ("unshare", [0, 0, 0, 0], None),
        ("setns", [u64::MAX, 0, 0, 0], Some(EPERM)),
        // A thread must share signal handlers, so the kernel refuses these flags for itself.
        ("clone", [0x1000_0000 | 0x1_0000, 0, 0, 0], Some(EPERM)),
        ("clone", [0x1_0000, 0, 0, 0], None),
        ("clone3", [0; 4], Some(ENOSYS)),
        ("keyctl", [9999, 0, 0, 0], Some(EPERM)),
        ("add_key", [0; 4], Some(EPERM)),
        ("request_key", [0; 4], Some(EPERM)),
        ("bpf", [9999, 0, 0, 0], Some(EPERM)),
        ("perf_event_open", [0; 4], Some(EPERM)),
        ("userfaultfd", [0xffff_ffff, 0, 0, 0], Some(EPERM)),
        ("io_uring_setup", [0; 4], Some(EPERM)),
        ("open_by_handle_at", [0; 4], Some(EPERM)),
        ("swapon", [0; 4], Some(EPERM)),
        ("reboot", [0; 4], Some(EPERM)),
        ("init_module", [0; 4], Some(EPERM)),
        ("settimeofday", [1, 0, 0, 0], Some(EPERM)),
        ("chroot", [0; 4], Some(EPERM)),
        ("socket", [40, 0x7fff, 0, 0], Some(EPERM)),
        ("socket", [38, 0x7fff, 0, 0], Some(EPERM)),
        ("socket", [1 << 32 | 38, 0x7fff, 0, 0], Some(EPERM)),
        ("socket", [1, 1, 0, 0], None),
        ("ioctl", [u64::MAX, 0x5412, 0, 0], Some(EPERM)),
        ("ioctl", [u64::MAX, 0x5401, 0, 0], None),
        ("personality", [0xffff_ffff, 0, 0, 0], None),
        ("ptrace", [9999, 0, 0, 0], None),
        ("process_vm_readv", [0; 4], None),
        ("mbind", [0; 4], None),
        ("getpid", [0; 4], None),
    ]
    .into_iter()
    .map(|(name, arguments, answer)| (name, number(name), arguments, answer))
    .collect();
    calls.push(("a call not born yet", 5000, [0; 4], Some(ENOSYS)));
    if cfg!(target_arch = "x86_64") {
        calls.push(("getpid of x32", 0x4000_0000 | 39, [0; 4], Some(ENOSYS)));
    }
    calls
}

fn answers() {
    for (_, number, arguments, _) in calls() {
        match call(number, arguments) {
            Ok(_) => println!("ANSWER 0"),
            Err(errno) => println!("ANSWER {errno}"),
        }
    }
}

#[test]
fn the_default_filter_refuses_what_it_should() {
    let (filtered, unfiltered) = (lines("calls"), lines("calls-unfiltered"));
    let calls = calls();
    assert_eq!((filtered.len(), unfiltered.len()), (calls.len(), calls.len()));
    let mut told_apart = 0;
    for ((call, filtered), unfiltered) in calls.iter().zip(&filtered).zip(&unfiltered) {
        let answer: i32 = filtered.parse().unwrap();
        match call.3 {
            Some(wanted) => assert_eq!(answer, wanted, "{call:x?}"),
            None => assert!(answer != EPERM && answer != ENOSYS && filtered == unfiltered, "{call:x?}: {answer}"),
        }
        told_apart += usize::from(filtered != unfiltered);
    }
    if common::tier("root") {
        // Root would get past most of these, so it is the filter that answers. A few may be missing or
        // switched off in this kernel.
        assert!(told_apart >= 20, "only {told_apart} of {} calls differ without the filter", calls.len());
    }
}

#[test]
fn capabilities_open_what_belongs_to_them() {
    if !common::tier("root") {
        return;
    }
    let never = ["keyctl", "add_key", "request_key", "io_uring_setup", "swapon", "socket", "ioctl"];
    let unfiltered = lines("calls-unfiltered");
    for ((call, granted), unfiltered) in calls().iter().zip(lines("calls-with-every-capability")).zip(&unfiltered) {
        match call.3 {
            Some(wanted) if never.contains(&call.0) => assert_eq!(granted, wanted.to_string(), "{call:x?}"),
            _ => assert_eq!(&granted, unfiltered, "{call:x?}"),
        }
    }
}

#[test]
fn a_killing_filter_kills() {
    assert_eq!(child("kill").status.signal(), Some(libc::SIGSYS));
}

#[cfg(target_arch = "x86_64")]
fn thirty_two_bit() {
    let mut result = 20_u64;
    // SAFETY: 20 is `getpid` of the 32-bit interface, which takes no argument and touches no memory; the
    // kernel changes no register but the one that is declared, and those that the convention gives up.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    println!("ANSWER {}", result == u64::from(std::process::id()));
}

#[cfg(not(target_arch = "x86_64"))]
fn thirty_two_bit() {}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_32_bit_programs_kill_unless_let_in() {
    if !child("32-bit-unfiltered").status.success() {
        return common::skip("x86", "this kernel takes no calls of 32-bit programs");
    }
    assert_eq!(child("32-bit").status.signal(), Some(libc::SIGSYS));
    assert_eq!(lines("32-bit-allowed"), ["true"]);
}

#[test]
fn real_programs_run_under_the_default_filter() {
    for (tool, script) in [
        ("ls", "ls -la / >/dev/null && echo ANSWER fine"),
        ("sh", "(sleep 0 & wait; echo one | cat | grep -q one) && echo ANSWER fine"),
        (
            "python3",
            "exec python3 -c '
import subprocess, threading, socket, multiprocessing, tempfile, os, select, ctypes, mmap, signal, time
results = []
threads = [threading.Thread(target=lambda: results.append(sum(range(1000)))) for _ in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert results == [499500] * 8
assert subprocess.check_output([\"echo\", \"x\"]) == b\"x\\n\"
server = socket.create_server((\"127.0.0.1\", 0)); client = socket.create_connection(server.getsockname())
left, right = socket.socketpair(); left.send(b\"x\"); assert select.select([right], [], [], 5)[0]
with multiprocessing.get_context(\"fork\").Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
with tempfile.TemporaryFile() as file: file.write(b\"x\" * 4096); file.flush(); mmap.mmap(file.fileno(), 4096).close()
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.getrandom(8); os.memfd_create(\"x\")
print(\"ANSWER fine\")'",
        ),
        (
            "node",
            "node -e 'new (require(\"worker_threads\").Worker)(\"1\", {eval: true}).on(\"exit\", () => console.log(\"ANSWER fine\"))'",
        ),
        ("apt-get", "apt-get --version >/dev/null && echo ANSWER fine"),
        ("strace", "strace -f -o /dev/null true && echo ANSWER fine"),
        ("unshare", "unshare -U true 2>/dev/null || echo ANSWER fine"),
    ] {
        if common::tools("tools", &[tool]) {
            assert_eq!(lines(&format!("run {script}")), ["fine"], "{tool}");
        }
    }
}
