//! Attacks on the account of leases, and accidents that befall it: files of others in the place of slots, damage, a
//! full file system. Live leases are kept, and nobody is kept from what is free.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod account;
mod common;
mod driver;
mod fixture;

use account::{Host, Other, SOON, TABLE, allocator, allocator_of_parent, ready, sealed};
use common::Ordinary;
use fixture::{role, say};
use gpucontainer::gpu::{DriverRoot, GpuAllocator, GpuFault, Inventory, Wait};
use gpucontainer::{Cancel, ErrorKind, GpuRequest};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    match role().as_deref() {
        Some("hold") => {
            let lease = allocator_of_parent().acquire(&GpuRequest::count(1), Wait::forever()).unwrap();
            say(&format!("holds {}", lease.gpus()[0]));
            std::thread::sleep(SOON);
        }
        other => panic!("no test is for {other:?}"),
    }
}

/// Runs a shell's commands in the directory of the slots, as `user`.
fn shell(host: &Host, user: u32, script: &str) {
    let id = user.to_string();
    let status = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", "sh", "-ec", script])
        .current_dir(host.allocator.path())
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

#[test]
fn what_others_leave_in_the_place_of_slots_is_passed() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["setpriv", "python3"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("l40s");
    let lease = host.now(1).unwrap();
    let left = u32::try_from(host.allocator.status().unwrap().gpus.len() - 1).unwrap();
    let socket = "python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' NAME";
    let table = [
        (65534, "ln -s /dev/zero NAME"),
        (65534, "ln -s NAME NAME"),
        (65534, "ln -s . NAME"),
        (65534, "mkfifo NAME"),
        (65534, "mkdir NAME; touch NAME/file"),
        (65534, "touch NAME; chmod 000 NAME"),
        (65534, "truncate -s 1T NAME"),
        (65534, "head -c 100000 /dev/urandom >NAME"),
        (65534, "printf '%016x\\n{}\\n' 1 >NAME"),
        (65534, socket),
        // One that never ends, one whose opening fails, and a disk.
        (0, "mknod NAME c 1 5"),
        (0, "mknod NAME c 240 77"),
        (0, "mknod NAME b 240 77"),
        (0, "ln lease-* NAME"),
    ];
    for (user, script) in table {
        // Before all others in the order of names, and after them.
        for name in ["lease-", "wait-", "gone-"].iter().flat_map(|kind| ["!", "~"].map(|end| format!("{kind}{end}"))) {
            shell(
                &host,
                user,
                &script.replace("NAME", &format!("'./{name}'")).replace("lease-*", &format!("lease-{}", lease.id())),
            );
            let start = Instant::now();
            let status = host.allocator.status().unwrap();
            assert_eq!(status.leases.len(), 1, "{script} {name}: {status:?}");
            assert_eq!(status.leases[0].gpus.len(), 1, "{script} {name}: {status:?}");
            assert!(status.waiting.is_empty(), "{script} {name}: {status:?}");
            let rest = host.now(left).unwrap();
            assert!(host.now(1).is_err(), "{script} {name}: a GPU was leased twice");
            drop(rest);
            assert!(start.elapsed() < SOON, "{script} {name}");
            shell(&host, 0, &format!("rm -rf -- '{name}'"));
        }
    }
    drop(lease);
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
}

/// Whoever asks for a lease in the sense of `fcntl(2)` on a file of its own keeps others from opening it.
#[test]
fn nobody_keeps_others_from_the_account_by_a_file_of_its_own() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["setpriv", "python3"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let lease = host.now(1).unwrap();
    let script = "import fcntl, os, signal, sys, time\n\
        signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
        for name in sys.argv[1:]:\n \
        fcntl.fcntl(os.open(name, os.O_RDWR | os.O_CREAT, 0o644), fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
        print('ready', flush=True)\n\
        time.sleep(60)\n";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    // A shell passes a program of that name that this user may not execute.
    command.args(["sh", "-c", "exec python3 -c \"$0\" \"$@\"", script]);
    let mut attacker = {
        command.args(["lease-!", "wait-!", "gone-!"]).current_dir(host.allocator.path());
        Other::start(command)
    };
    attacker.said("ready");
    let start = Instant::now();
    assert_eq!(host.allocator.status().unwrap().leases.len(), 1);
    drop(host.now(1).unwrap());
    assert!(host.now(2).is_err());
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(2)).unwrap();
    assert!(ready(&mut ticket).is_none());
    drop(lease);
    drop(ticket.wait(Some(SOON)).unwrap().unwrap());
    assert!(start.elapsed() < SOON);
}

#[test]
fn damage_costs_words_and_neither_leases_nor_places() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(1)).unwrap();
    assert!(ready(&mut ticket).is_none());
    let slot = host.slot(&lease);
    let place = host.there(host.names().iter().find(|name| name.starts_with("wait-")).unwrap());
    let texts = [std::fs::read(&slot).unwrap(), std::fs::read(&place).unwrap()];
    // The same bytes each time, like nothing that is ever written.
    let noise: Vec<u8> =
        (0..20_000_u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    type Damage<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let damages: [Damage<'_>; 7] = [
        &|_| Vec::new(),
        &|text| text[..text.len() / 2].to_vec(),
        &|text| text[..text.len() - 1].to_vec(),
        &|text| [text, b"more"].concat(),
        &|text| [text, &noise].concat(),
        &|_| noise.clone(),
        &|text| text.iter().map(|byte| byte ^ 0x80).collect(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        for (path, text) in [(&slot, &texts[0]), (&place, &texts[1])] {
            // As a disk that fails would: the file is the same, only not what is in it.
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(&damage(text), 0).unwrap();
        }
        let status = host.allocator.status().unwrap();
        assert_eq!((status.leases.len(), status.leases[0].gpus.len()), (1, 1), "damage {number}");
        let error = host.now(1).unwrap_err();
        assert!(error.to_string().contains("0 of 1 free: 1 leased by a process of user"), "damage {number}: {error}");
        assert!(ready(&mut ticket).is_none(), "damage {number}");
        assert_eq!(host.names().len(), 2, "damage {number}: what lives is not collected");
    }
    drop(lease);
    let next = ticket.wait(Some(SOON)).unwrap().expect("who waits in a damaged place waits nevertheless");
    drop((next, ticket));
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
}

#[test]
fn who_holds_the_account_is_waited_for_but_not_for_ever() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["setpriv", "flock"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let lease = host.now(1).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "flock", "--no-fork"]);
    command.arg(host.allocator.path()).args(["sh", "-c", "echo ready; exec sleep 60"]);
    let mut attacker = Other::start(command);
    attacker.said("ready");
    let error = host.now(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains(host.allocator.path().to_str().unwrap()), "{error}");
    // Looking needs no lock, giving back neither, and a wait can be given up.
    assert_eq!(host.allocator.status().unwrap().leases.len(), 1);
    drop(lease);
    assert_eq!(host.allocator.status().unwrap().leases.len(), 0);
    let cancel = Cancel::new();
    cancel.cancel();
    let start = Instant::now();
    let error = host.allocator.acquire(&GpuRequest::count(1), Wait::forever().cancel(&cancel)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(attacker);
    drop(host.now(2).unwrap());
}

/// Nobody else takes the one that is left.
#[test]
fn a_gpu_in_quarantine_is_promised_to_nobody() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let leases = [host.now(1).unwrap(), host.now(1).unwrap()];
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(1)).unwrap();
    assert!(ready(&mut ticket).is_none());
    // The first in every order.
    let first = host.allocator.status().unwrap().gpus[0].uuid.clone();
    host.allocator.quarantine().report(&first, GpuFault::Requested).unwrap();
    drop(leases);
    let error = host.now(1).unwrap_err();
    assert!(error.to_string().contains("1 promised to, who waits"), "{error}");
    let lease = ticket.wait(Some(SOON)).unwrap().unwrap();
    assert_ne!(lease.gpus()[0], first);
    // One that comes back is for who waits, too.
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(1)).unwrap();
    assert!(ready(&mut ticket).is_none());
    host.allocator.quarantine().release(&first).unwrap();
    let error = host.now(1).unwrap_err();
    assert!(error.to_string().contains("1 promised to, who waits"), "{error}");
    assert_eq!(ticket.wait(Some(SOON)).unwrap().map(|lease| lease.gpus().to_vec()), Some(vec![first]));
}

/// Others show it to people: on a terminal, in a log.
#[test]
fn the_words_of_strangers_are_harmless_to_read() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let lease = host.now(1).unwrap();
    let request = GpuRequest::count(2);
    let mut ticket = host.allocator.enqueue(&request).unwrap();
    let attack = "\u{1b}[2J\u{9b}31m\r\n0  NVIDIA L40S  free\u{7}";
    for name in host.names() {
        let text = std::fs::read_to_string(host.there(&name)).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        record["owner"]["program"] = json!(attack.repeat(1000));
        record["owner"]["pid_namespace"] = json!(attack);
        if name.starts_with("wait-") {
            record["request"]["which"] = json!({ "named": [{ "uuid": attack }] });
        } else {
            record["held"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "device": attack, "gpu": attack, "sharing": "exclusive" }));
        }
        std::fs::write(host.there(&name), sealed(&record.to_string())).unwrap();
    }
    let status = host.allocator.status().unwrap();
    assert_eq!((status.leases.len(), status.leases[0].gpus.len(), status.waiting.len()), (1, 2, 1), "{status:?}");
    let refusal = host.now(2).unwrap_err().to_string();
    assert!(ready(&mut ticket).is_none());
    let texts = [refusal, ticket.reason().to_owned(), status.to_string(), serde_json::to_string(&status).unwrap()];
    for text in texts {
        assert!(!text.contains(|sign: char| sign.is_control() && sign != '\n'), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("0  NVIDIA L40S  free")), "{text}");
        assert!(text.len() < 10_000, "{}", text.len());
    }
    drop(lease);
}

#[test]
fn a_name_that_is_removed_frees_its_own_lease_alone() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let (first, second) = (host.now(1).unwrap(), host.now(1).unwrap());
    std::fs::remove_file(host.slot(&first)).unwrap();
    // Nobody else can find the lock any more; the other one stays.
    let third = host.now(1).unwrap();
    assert_eq!(third.gpus(), first.gpus());
    assert!(host.now(1).unwrap_err().to_string().contains("0 of 2 free"));
    first.release().unwrap();
    assert!(host.now(1).unwrap_err().to_string().contains("0 of 2 free"), "it is the third one's now");
    // Who waits while all of the directory goes does not wait for ever.
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(1)).unwrap();
    assert!(ready(&mut ticket).is_none());
    std::fs::remove_dir_all(host.allocator.path()).unwrap();
    let error = ticket.wait(Some(SOON)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(host.now(1).unwrap_err().kind(), ErrorKind::NotFound);
    drop((second, third, ticket));
    // Opened anew, the account is a new one.
    drop(allocator(host.allocator.path(), host.driver.path()).acquire(&GpuRequest::count(2), Wait::none()).unwrap());
}

/// A machine whose account is on a tmpfs of 32 KiB and 12 files.
struct Small {
    host: Host,
    directory: PathBuf,
}

impl Small {
    fn new() -> Self {
        let mut host = Host::pair();
        let directory = host.table.path().join("small");
        std::fs::create_dir(&directory).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32k,nr_inodes=12", "tmpfs"])
            .arg(&directory)
            .status();
        assert!(mount.unwrap().success());
        host.allocator = allocator(&directory.join("gpu"), host.driver.path());
        Self { host, directory }
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.directory.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn fill_with_files(&self) {
        std::fs::create_dir(self.directory.join("filler")).unwrap();
        let name = |number: u32| self.directory.join("filler").join(number.to_string());
        assert!((0..12).any(|number| std::fs::File::create(name(number)).is_err()));
    }

    fn make_room(&self) {
        let filler = self.directory.join("filler");
        let removed = if filler.is_dir() { std::fs::remove_dir_all(filler) } else { std::fs::remove_file(filler) };
        removed.unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.directory).status().unwrap();
        assert!(status.success() || std::thread::panicking());
    }
}

#[test]
fn a_full_tmpfs_keeps_what_is_there_and_lets_nothing_half_written_stay() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let small = Small::new();
    let host = &small.host;
    let lease = host.now(1).unwrap();
    small.fill();
    for wait in [Wait::none(), Wait::at_most(SOON), Wait::forever()] {
        let start = Instant::now();
        let error = host.allocator.acquire(&GpuRequest::count(1), wait.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(start.elapsed() < SOON);
        let error = host.allocator.acquire(&GpuRequest::count(2), wait).unwrap_err();
        let expected = [ErrorKind::NoSpace, ErrorKind::GpuUnavailable];
        assert!(expected.contains(&error.kind()), "{error}");
        assert_eq!(host.names(), [format!("lease-{}", lease.id())]);
        assert_eq!(host.allocator.status().unwrap().leases[0].pid, Some(std::process::id()));
    }
    small.make_room();

    // The place is kept over the failure, and the next wait finds what is free though nobody tells of room.
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(2)).unwrap();
    assert!(ready(&mut ticket).is_none());
    drop(lease);
    assert!(driver::slots(&host.allocator)[0].starts_with("wait-"), "what is over makes room");
    small.fill_with_files();
    let error = ticket.wait(Some(SOON)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(host.names().len() == 1 && host.names()[0].starts_with("wait-"), "{:?}", host.names());
    assert_eq!(host.allocator.status().unwrap().waiting.len(), 1);
    small.make_room();
    let both = ticket.wait(Some(SOON)).unwrap().unwrap();
    assert_eq!(both.gpus().len(), 2);
    drop((both, ticket));

    // What the dead left makes room for what has to be written down.
    let (first, second) = (host.now(1).unwrap(), host.now(1).unwrap());
    let uuid = first.gpus()[0].clone();
    host.crash(first, "lease-0");
    host.crash(second, "lease-1");
    host.driver.change(|machine| {
        let gpus = machine["gpus"].as_array_mut().unwrap();
        let gpu = gpus.iter_mut().find(|gpu| gpu["uuid"] == json!(uuid)).unwrap();
        gpu["memory"] = json!({ "total": 45_u64 << 30, "used": 30_u64 << 30 });
    });
    small.fill();
    let inventory = Inventory::discover_with(&DriverRoot::new(host.driver.path()));
    let other = inventory.gpus().iter().find(|gpu| gpu.uuid != uuid).unwrap();
    let request = GpuRequest::uuids([&other.uuid]).unwrap();
    // Room for the note, and none for the lease: nothing half-made stays.
    let error = host.allocator.acquire(&request, Wait::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(host.names(), ["gone-0", "lease-0"]);
    small.make_room();
    drop(host.allocator.acquire(&request, Wait::none()).unwrap());
}

/// The kernel keeps so many events for one who does not look; what comes then is lost.
#[test]
fn who_was_told_too_much_at_once_misses_nothing() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    let mut ticket = host.allocator.enqueue(&GpuRequest::count(1)).unwrap();
    assert!(ready(&mut ticket).is_none());
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    // Files that are closed and removed, of which two events each are told.
    for number in 0..most.trim().parse::<u32>().unwrap() / 2 + 100 {
        let path = host.there(&format!("other-{number}"));
        std::fs::write(&path, "").unwrap();
        std::fs::remove_file(&path).unwrap();
    }
    drop(lease);
    drop(ticket.wait(Some(SOON)).unwrap().expect("the GPU is free"));
}

#[test]
fn a_directory_of_wrong_owner_or_mode_is_refused() {
    const ALLOWED: &str = "GPUC_TEST_ALLOWED";
    if let Some(table) = std::env::var_os(TABLE) {
        let opened = GpuAllocator::at(&table);
        assert_eq!(opened.is_ok(), std::env::var_os(ALLOWED).unwrap() == "yes", "{table:?}: {opened:?}");
        return;
    }
    if !common::tier("root") || !common::tools("root", &["setpriv"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Owner, mode, whether an ordinary user accepts it, whether root does.
    let table = [
        (0, 0o1777, true, true),
        (0, 0o0777, false, true),
        (0, 0o0775, false, true),
        (65534, 0o1777, true, false),
        (65534, 0o0700, true, false),
        (4711, 0o1777, false, false),
        (4711, 0o0777, false, false),
    ];
    for (number, (owner, mode, ordinary, root)) in table.into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let allowed = if ordinary { "yes" } else { "no" };
        let environment = [(TABLE, path.as_os_str()), (ALLOWED, allowed.as_ref())];
        Ordinary::nobody().run("a_directory_of_wrong_owner_or_mode_is_refused", &environment);
        let opened = GpuAllocator::at(&path);
        assert_eq!(opened.is_ok(), root, "{owner} {mode:o}: {opened:?}");
        if root {
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o1777, "what root owns it mends");
        }
    }
    for what in ["mkfifo", "touch"] {
        let path = directory.path().join(what);
        assert!(Command::new(what).arg(&path).status().unwrap().success());
        assert!(GpuAllocator::at(&path).is_err(), "{what}");
    }
}
