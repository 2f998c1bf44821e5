//! What a test leaves behind: descriptors, mounts, processes, cgroups, links, files.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One watcher at a time in a process: the tests of one binary share its descriptors and children.
static ALONE: Mutex<()> = Mutex::new(());

/// How long something may take to vanish, such as a namespace whose last process was just reaped.
const PATIENCE: Duration = Duration::from_secs(3);

/// Compares the system after a test with the system before it.
///
/// The guard holds a lock of the whole process, so watched tests run one after the other.
/// Tests without a guard may run beside it: what they have open for less than three seconds is
/// not taken for a leak.
#[derive(Debug)]
pub(crate) struct Leaks {
    before: BTreeSet<String>,
    patience: Duration,
    checked: bool,
    _alone: MutexGuard<'static, ()>,
}

impl Leaks {
    /// Notes what there is. Open what the test itself keeps (temporary directories are fine) after this.
    pub(crate) fn watch() -> Self {
        Self::watch_for(PATIENCE)
    }

    /// The same, with another time for things to vanish in.
    pub(crate) fn watch_for(patience: Duration) -> Self {
        // A test that failed while it was watched must not fail those after it.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { before: everything(), patience, checked: false, _alone: alone }
    }

    /// Asserts that nothing was left behind, and no mount taken away. Dropping the guard does the same.
    #[track_caller]
    pub(crate) fn check(mut self) {
        self.compare();
    }

    #[track_caller]
    fn compare(&mut self) {
        self.checked = true;
        let is_mount = |item: &&String| item.starts_with("mount ");
        let start = Instant::now();
        let mut left: Option<BTreeSet<String>> = None;
        loop {
            let now = everything();
            let more = now.difference(&self.before).cloned();
            let gone = self.before.difference(&now).filter(is_mount).map(|item| format!("gone: {item}"));
            let different: BTreeSet<String> = more.chain(gone).collect();
            let still: BTreeSet<String> = match left {
                None => different,
                Some(before) => before.intersection(&different).cloned().collect(),
            };
            if still.is_empty() {
                return;
            }
            let lines: Vec<String> = still.iter().map(described).collect();
            assert!(start.elapsed() < self.patience, "left behind:\n  {}", lines.join("\n  "));
            left = Some(still);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Leaks {
    fn drop(&mut self) {
        // The first failure is the one to read.
        if !self.checked && !std::thread::panicking() {
            self.compare();
        }
    }
}

fn everything() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    descriptors(&mut all);
    mounts(&mut all);
    children(&mut all);
    let cgroups = Path::new("/sys/fs/cgroup");
    for directory in names(cgroups).into_iter().map(|name| cgroups.join(name)) {
        cgroup_directories(&directory, 5, &mut all);
    }
    all.extend(names("/sys/class/net".as_ref()).into_iter().map(|name| format!("link {name}")));
    files("/run/gpucontainer".as_ref(), &mut all);
    files("/dev/shm/gpucontainer-0".as_ref(), &mut all);
    let temporary = std::env::temp_dir();
    let ours = names(&temporary).into_iter().filter(|name| name.starts_with("gpuc"));
    all.extend(ours.map(|name| format!("file {}/{name}", temporary.display())));
    all
}

fn descriptors(all: &mut BTreeSet<String>) {
    let directory = Path::new("/proc/self/fd");
    for name in names(directory) {
        // The descriptor of this listing is closed by now; of the rest the target tells one from the next.
        if let Ok(target) = std::fs::read_link(directory.join(&name)) {
            all.insert(format!("fd {name} -> {}", target.display()));
        }
    }
}

fn mounts(all: &mut BTreeSet<String>) {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in text.lines() {
        // Identifier, place and kind; the options of a superblock may change by themselves.
        let words: Vec<&str> = line.split(' ').collect();
        let kind = words.iter().skip_while(|word| **word != "-").nth(1).unwrap_or(&"");
        if let (Some(identifier), Some(place)) = (words.first(), words.get(4)) {
            all.insert(format!("mount {identifier} {kind} on {place}"));
        }
    }
}

fn children(all: &mut BTreeSet<String>) {
    let own = std::process::id().to_string();
    for name in names("/proc".as_ref()) {
        // `pid (name) state parent …`, where the name may hold anything.
        let stat = std::fs::read_to_string(format!("/proc/{name}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, tail)| tail.split_whitespace().nth(1));
        if parent == Some(own.as_str()) {
            // Its name and state may change while one looks.
            all.insert(format!("child {name}"));
        }
    }
}

/// What to print of an item.
fn described(item: &String) -> String {
    let stat =
        item.strip_prefix("child ").and_then(|child| std::fs::read_to_string(format!("/proc/{child}/stat")).ok());
    let words = stat.as_deref().and_then(|stat| Some((stat.split_once('(')?.1, stat.rsplit_once(')')?.1)));
    match words {
        Some((name, rest)) => {
            let name = name.rsplit_once(')').map_or(name, |(name, _)| name);
            format!("{item}: {name}, state {}", rest.split_whitespace().next().unwrap_or("?"))
        }
        None => item.clone(),
    }
}

fn cgroup_directories(directory: &Path, depth: u32, all: &mut BTreeSet<String>) {
    let text = directory.to_string_lossy();
    // The group that only holds the others, and gives them their controllers, is made once and stays.
    if text.contains("/gpuc") && !text.ends_with("/gpucontainer") {
        all.insert(format!("cgroup {text}"));
    }
    if depth == 0 {
        return;
    }
    for name in names(directory) {
        let path = directory.join(name);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            cgroup_directories(&path, depth - 1, all);
        }
    }
}

/// The files in a directory and in those inside it; the directories themselves are made once and stay.
fn files(directory: &Path, all: &mut BTreeSet<String>) {
    for path in names(directory).into_iter().map(|name| directory.join(name)) {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => files(&path, all),
            _ => drop(all.insert(format!("file {}", path.display()))),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
