//! How long it takes to come into a private network: as its first member, which makes the network, and as a further one;
//! and to leave it. As root, in a network namespace of its own in place of the host's.

use gpucontainer::net::PrivateNetwork;
use std::time::{Duration, Instant};

const WARM_UP: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let samples: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    // SAFETY: the process has one thread, and nothing of it knows the network that it had.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let machine = gpucontainer_benches::machine::describe();
    println!("{} on {} × {}, load {}", machine.kernel, machine.processors, machine.processor, machine.load);
    let network = PrivateNetwork::named("bench");
    let inner = PrivateNetwork::named("inner").outbound(false);
    let mut rows = Rows::default();
    for sample in 0..WARM_UP + samples {
        let mut time = |what: &'static str, work: &mut dyn FnMut() -> gpucontainer::Result<()>| {
            let start = (Instant::now(), cpu());
            work()?;
            let took = (start.0.elapsed(), cpu().saturating_sub(start.1));
            if sample >= WARM_UP {
                rows.add(what, took);
            }
            Ok::<(), gpucontainer::Error>(())
        };
        for (network, first, further) in [
            (&network, "first member, with a way out", "further member, with a way out"),
            (&inner, "first member, leading nowhere", "further member, leading nowhere"),
        ] {
            let (mut one, mut other) = (None, None);
            time(first, &mut || network.join("one").map(|member| one = Some(member)))?;
            time(further, &mut || network.join("other").map(|member| other = Some(member)))?;
            time("leave", &mut || other.take().map_or(Ok(()), |member| member.leave()))?;
            time("leave as the last", &mut || one.take().map_or(Ok(()), |member| member.leave()))?;
            // What the kernel takes apart behind our back shall not be in the next sample: it holds locks meanwhile.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    rows.print();
    Ok(())
}

/// The processor time of this process, which includes that of its helpers: they share its memory and are collected.
fn cpu() -> Duration {
    let mut all = Duration::ZERO;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the place is of the size that the call fills.
        unsafe { libc::getrusage(who, usage.as_mut_ptr()) };
        // SAFETY: zeroes are a valid value, and so is what the call makes of them.
        let usage = unsafe { usage.assume_init() };
        for time in [usage.ru_utime, usage.ru_stime] {
            all += Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_usec).unwrap_or_default() * 1000);
        }
    }
    all
}

#[derive(Default)]
struct Rows(Vec<(&'static str, Vec<Duration>, Vec<Duration>)>);

impl Rows {
    fn add(&mut self, what: &'static str, (wall, cpu): (Duration, Duration)) {
        if !self.0.iter().any(|row| row.0 == what) {
            self.0.push((what, Vec::new(), Vec::new()));
        }
        for row in self.0.iter_mut().filter(|row| row.0 == what) {
            row.1.push(wall);
            row.2.push(cpu);
        }
    }

    fn print(&mut self) {
        println!("{:34} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "minimum", "median", "99 %", "CPU");
        for (what, walls, cpus) in &mut self.0 {
            walls.sort();
            cpus.sort();
            let at = |list: &[Duration], part: usize| {
                list[(list.len() * part / 100).min(list.len() - 1)].as_secs_f64() * 1e3
            };
            println!("{what:34} {:9.3} {:9.3} {:9.3} {:9.3}", at(walls, 0), at(walls, 50), at(walls, 99), at(cpus, 50));
        }
    }
}
